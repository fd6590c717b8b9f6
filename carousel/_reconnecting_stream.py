"""A session's or batch's connection for blocking callers: one stream after another, as long as it can be resumed.

A call that reaches its deadline ends only itself. The session stays lost until a later call resumes it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from carousel._backoff import Attempts, Backoff
from carousel._deadline import Deadline
from carousel._exchange import Exchange, LostError, RepeatError
from carousel._protocol import SessionProtocol
from carousel._resumable import Resumable
from carousel._stream import Stream
from carousel._turn import Turn
from carousel.errors import CarouselError, UnavailableError
from carousel.v1 import inference_pb2 as pb
from carousel.v1.inference_pb2_grpc import InferenceStub

P = TypeVar("P", bound=Resumable)
T = TypeVar("T")

LEAST_ATTEMPT_S = 1.0
"""The least time for one attempt to resume, even when the recovery has less time left."""
MAX_REWINDS = 20
"""How often a rewind is attempted when the connection is lost during it."""


class ReconnectingStream(Generic[P]):
    """One thread at a time may use it: a second thread gets ConcurrentUseError."""

    def __init__(self, stub: InferenceStub, protocol: P, name: str = "session") -> None:
        """name: what the stream carries, for errors."""
        self._stub = stub
        self._protocol = protocol
        self._name = name
        self._stream = Stream(stub, protocol)
        self._turn = Turn(name)
        self._backoff = Backoff(0.0 if protocol.recovery is None else protocol.recovery.timeout_s)
        self._lost_by: CarouselError | None = None
        self._repeat: RepeatError | None = None
        self._num_resumes = 0

    def run(self, exchange: Exchange[T], deadline: Deadline, *, is_closing: bool = False) -> T:
        """Runs an exchange and returns its result. Uses another stream when one is lost.

        is_closing: attempt to resume a lost session only once. Raises what the exchange raises; DeadlineExceededError
        when the deadline passes, after which the exchange is dropped; UnavailableError or a similar error when the
        session was not resumed in the recovery's time; and the error that ended the session for good.
        """
        with self._turn:
            return self._run(exchange, deadline, is_closing)

    def cancel(self: ReconnectingStream[SessionProtocol], deadline: Deadline) -> int:
        """Cancels what is in flight, including another thread's call, which then raises RequestCancelledError. Returns
        the session's position.

        Raises what `run` raises.
        """
        with self._turn.awaiting():
            self._stream.wake()  # a thread that reconnects checks `is_awaited` without this
            with self._turn.after_others(deadline):
                self._run(self._protocol.synchronize(), deadline)
                return self._protocol.position

    def rewind(
        self: ReconnectingStream[SessionProtocol], position: int, rewind: Callable[[], object], deadline: Deadline
    ) -> None:
        """Rewinds the session, after cancelling what is in flight. rewind: the call that asks the server for it.

        Raises what `rewind` raises, unless the connection was lost meanwhile. In that case the session is resumed, its
        marks are set again, and `rewind` is called again.
        """
        with self._turn:
            for attempt in range(MAX_REWINDS):
                self._run(self._protocol.synchronize(), deadline)
                num_resumes = self._num_resumes
                self._protocol.rewinding(position)
                try:
                    rewind()
                except CarouselError:
                    self._run(self._protocol.synchronize(), deadline)
                    self._protocol.rewinding(None)
                    if self._num_resumes == num_resumes or attempt == MAX_REWINDS - 1:
                        raise
                else:
                    self._protocol.rewound(position)
                    return

    def post(self, request: pb.StreamRequest) -> None:
        """Sends a request whose answer another exchange waits for. While the stream is lost, the resume will send
        it."""
        if self._lost_by is None:
            self._stream.post(request)

    def end(self, deadline: Deadline) -> None:
        """See `Stream.end`. Does nothing in a forked process: the stream belongs to the parent."""
        if self._turn.is_here:
            self._stream.end(deadline)

    def _interrupt(self) -> None:
        """Cancels what the running exchange waits for, if another thread waits in `cancel`."""
        request = self._protocol.interrupt() if self._turn.is_awaited else None
        if request is not None:
            self.post(request)

    def _run(self, exchange: Exchange[T], deadline: Deadline, is_closing: bool = False) -> T:
        if self._protocol.recovery is None:
            return self._stream.run(exchange, deadline, self._interrupt)
        try:
            request = next(exchange)
            while True:
                request = exchange.send(self._answer(request, deadline, is_closing))
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            self._backoff.pause(time.monotonic())

    def _answer(self, request: pb.StreamRequest | None, deadline: Deadline, is_closing: bool) -> pb.StreamResponse:
        """Sends a request, if there is one. Returns the next response. Resumes the session as often as needed."""
        recovery = self._protocol.recovery
        assert recovery is not None  # noqa: S101  # `_run` has checked it
        if request is not None and self._lost_by is None:
            self._stream.post(request)
        while True:
            if recovery.backlog:
                return recovery.backlog.popleft()
            self._interrupt()
            if self._lost_by is not None:
                self._reconnect(deadline, is_closing)
                continue
            if self._repeat is not None:
                self._wait(self._repeat.error, deadline)
                self._stream.post(self._repeat.request)
                self._repeat = None
            received = self._stream.receive(deadline)
            if received is None:
                continue
            try:
                if isinstance(received, CarouselError):
                    recovery.stream_ended(received)
                    raise LostError(received)
                has_progress = recovery.received(received)
            except LostError as lost:
                self._lose(lost.error)
            except RepeatError as repeat:
                self._repeat = repeat
                self._backoff.begin(time.monotonic())
            except CarouselError as error:
                raise self._protocol.lost(error) from None
            else:
                if has_progress:
                    self._backoff.reset()
                return received

    def _lose(self, error: CarouselError) -> None:
        self._stream.end(Deadline(0))
        if self._protocol.recovery is None or not self._protocol.recovery.is_open:
            raise self._protocol.lost(error)
        self._lost_by = error
        self._backoff.begin(time.monotonic())

    def _reconnect(self, deadline: Deadline, is_closing: bool) -> None:
        """Resumes the session on a new stream, and sends the pending requests again."""
        self._backoff.begin(time.monotonic())
        attempts = Attempts()
        while self._lost_by is not None:
            error = self._lost_by
            if not attempts.can_help(error):
                raise self._protocol.lost(error)
            if attempts.count and is_closing:
                raise copy.copy(error)
            self._wait(error, deadline)
            attempts.count += 1
            self._attempt(deadline)

    def _wait(self, error: CarouselError, deadline: Deadline) -> None:
        try:
            delay_s = self._backoff.next(error, time.monotonic())
        except CarouselError:
            self._backoff.reset()  # a later call gets the full time again
            raise copy.copy(error) from None
        remaining_s = deadline.remaining()
        time.sleep(delay_s if remaining_s is None else min(delay_s, remaining_s))
        if deadline.remaining() == 0.0:
            raise deadline.exceeded() from error

    def _attempt(self, deadline: Deadline) -> None:
        self._stream = Stream(self._stub, self._protocol)
        limit = deadline.sooner(max(LEAST_ATTEMPT_S, self._backoff.left_s(time.monotonic())))
        try:
            requests = self._resume(limit)
        except LostError as lost:
            self._lost_by = lost.error
        except CarouselError as error:
            if error is limit.passed_by:
                if deadline.remaining() == 0.0:
                    raise deadline.exceeded() from None
                error = UnavailableError(f"the {self._name} was not resumed within {self._backoff.timeout_s:g} s")
            self._lost_by = error
        else:
            for request in requests:
                self._stream.post(request)
            self._lost_by = self._repeat = None
            self._num_resumes += 1
        finally:
            if self._lost_by is not None:
                self._stream.end(Deadline(0))

    def _resume(self, deadline: Deadline) -> list[pb.StreamRequest]:
        exchange = self._protocol.resume(self._stream.post)
        try:
            request = next(exchange)
            while True:
                if request is not None:
                    self._stream.post(request)
                while (received := self._stream.receive(deadline)) is None:
                    pass
                if isinstance(received, CarouselError):
                    raise received
                request = exchange.send(received)
        except StopIteration as end:
            requests: list[pb.StreamRequest] = end.value
            return requests
