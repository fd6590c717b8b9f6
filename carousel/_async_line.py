"""A session's connection over asyncio gRPC: one stream after another, for as long as the session can be gone on
with."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from carousel._async_stream import AsyncStream
from carousel._conversation import Conversation
from carousel._deadline import Deadline
from carousel._protocol import SessionProtocol
from carousel._recovery import Backoff, LostError
from carousel.errors import CarouselError

if TYPE_CHECKING:
    from carousel.v1.inference_pb2_grpc import InferenceAsyncStub  # exists for type checkers alone

T = TypeVar("T")


class AsyncLine:
    """Concurrent conversations take turns."""

    def __init__(self, stub: InferenceAsyncStub, protocol: SessionProtocol) -> None:
        self._stub = stub
        self._protocol = protocol
        self._stream = AsyncStream(stub, protocol)
        self._turn = asyncio.Lock()
        self._lost_by: CarouselError | None = None

    async def run(self, conversation: Conversation[T], deadline: Deadline, timeout_s: float | None = None) -> T:
        """Carries a conversation out and returns its result: see `Line.run`. Cancellation drops it."""
        recovery = self._protocol.recovery
        if recovery is None:
            return await self._stream.run(conversation, deadline)
        try:
            async with asyncio.timeout(deadline.remaining()), self._turn:
                request = next(conversation)
                while True:
                    try:
                        if self._lost_by is not None:
                            raise LostError(self._lost_by)
                        if request is not None:
                            self._stream.post(request)
                        received = await self._stream.receive()
                        if isinstance(received, CarouselError):
                            raise LostError(received)
                        recovery.received(received)
                    except LostError as lost:
                        await self._reconnect(
                            lost.error, deadline, recovery.timeout_s if timeout_s is None else timeout_s
                        )
                        request = None
                    else:
                        request = conversation.send(received)
        except StopIteration as end:
            result: T = end.value
            return result
        except TimeoutError:
            raise deadline.exceeded() from None

    async def end(self, deadline: Deadline) -> None:
        """See `AsyncStream.end`."""
        await self._stream.end(deadline)

    async def _reconnect(self, error: CarouselError, deadline: Deadline, timeout_s: float) -> None:
        """Goes on with the session on a new stream, and sends again what has no answer."""
        recovery = self._protocol.recovery
        assert recovery is not None  # noqa: S101  # the caller has looked
        if not recovery.is_open:
            raise self._protocol.lost(error)
        self._lost_by = error
        await self._stream.end(Deadline(0))
        backoff = Backoff(timeout_s)
        while True:
            try:
                delay_s = backoff.next(self._lost_by, deadline.remaining())
            except CarouselError as last:
                raise self._protocol.lost(last) from None
            await asyncio.sleep(delay_s)
            self._stream = AsyncStream(self._stub, self._protocol)
            try:
                await self._resume()
            except CarouselError as again:
                await self._stream.end(Deadline(0))
                self._lost_by = again
            except BaseException:  # a cancelled caller leaves the session for the next call to go on with
                await self._stream.end(Deadline(0))
                raise
            else:
                break
        for request in recovery.unanswered:
            self._stream.post(request)
        self._lost_by = None

    async def _resume(self) -> None:
        conversation = self._protocol.resume()
        try:
            request = next(conversation)
            while True:
                if request is not None:
                    self._stream.post(request)
                received = await self._stream.receive()
                if isinstance(received, CarouselError):
                    raise received
                request = conversation.send(received)
        except StopIteration:
            return
