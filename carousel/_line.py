"""A session's connection over blocking gRPC: one stream after another, for as long as the session can be gone on
with."""

from __future__ import annotations

import time
from typing import TypeVar

from carousel._conversation import Conversation
from carousel._deadline import Deadline
from carousel._protocol import SessionProtocol
from carousel._recovery import Backoff, LostError
from carousel._stream import Stream
from carousel.errors import CarouselError
from carousel.v1.inference_pb2_grpc import InferenceStub

T = TypeVar("T")


class Line:
    """Used by one thread at a time."""

    def __init__(self, stub: InferenceStub, protocol: SessionProtocol) -> None:
        self._stub = stub
        self._protocol = protocol
        self._stream = Stream(stub, protocol)
        self._lost_by: CarouselError | None = None

    def run(self, conversation: Conversation[T], deadline: Deadline, timeout_s: float | None = None) -> T:
        """Carries a conversation out and returns its result, on another stream when one is lost.

        timeout_s: how long to try; default the session's. Raises what the conversation raises; DeadlineExceededError
        when the deadline passes, dropping it; and what ended the stream, when the session cannot be gone on with.
        """
        recovery = self._protocol.recovery
        if recovery is None:
            return self._stream.run(conversation, deadline)
        try:
            request = next(conversation)
            while True:
                try:
                    if self._lost_by is not None:
                        raise LostError(self._lost_by)
                    if request is not None:
                        self._stream.post(request)
                    received = self._stream.receive(deadline)
                    if isinstance(received, CarouselError):
                        raise LostError(received)
                    recovery.received(received)
                except LostError as lost:
                    self._reconnect(lost.error, deadline, recovery.timeout_s if timeout_s is None else timeout_s)
                    request = None
                else:
                    request = conversation.send(received)
        except StopIteration as end:
            result: T = end.value
            return result

    def end(self, deadline: Deadline) -> None:
        """See `Stream.end`."""
        self._stream.end(deadline)

    def _reconnect(self, error: CarouselError, deadline: Deadline, timeout_s: float) -> None:
        """Goes on with the session on a new stream, and sends again what has no answer."""
        recovery = self._protocol.recovery
        assert recovery is not None  # noqa: S101  # the caller has looked
        if not recovery.is_open:
            raise self._protocol.lost(error)
        self._lost_by = error
        self._stream.end(Deadline(0))
        backoff = Backoff(timeout_s)
        while True:
            try:
                delay_s = backoff.next(self._lost_by, deadline.remaining())
            except CarouselError as last:
                raise self._protocol.lost(last) from None
            time.sleep(delay_s)
            self._stream = Stream(self._stub, self._protocol)
            try:
                self._resume(deadline)
            except CarouselError as again:
                self._stream.end(Deadline(0))
                self._lost_by = again
            else:
                break
        for request in recovery.unanswered:
            self._stream.post(request)
        self._lost_by = None

    def _resume(self, deadline: Deadline) -> None:
        conversation = self._protocol.resume()
        try:
            request = next(conversation)
            while True:
                if request is not None:
                    self._stream.post(request)
                received = self._stream.receive(deadline)
                if isinstance(received, CarouselError):
                    raise received
                request = conversation.send(received)
        except StopIteration:
            return
