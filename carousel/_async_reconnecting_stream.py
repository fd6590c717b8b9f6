"""A session's or batch's connection for asyncio: one stream after another, as long as it can be resumed.

A call that reaches its deadline, or whose task is cancelled, ends only itself. The session stays lost until a later
call resumes it.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from carousel._async_stream import AsyncStream
from carousel._async_turn import LoopCheck
from carousel._backoff import Attempts, Backoff
from carousel._deadline import Deadline
from carousel._exchange import Exchange, LostError, RepeatError
from carousel._protocol import SessionProtocol
from carousel._reconnecting_stream import LEAST_ATTEMPT_S, MAX_REWINDS
from carousel._resumable import Resumable
from carousel.errors import CarouselError, UnavailableError
from carousel.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from carousel.v1.inference_pb2_grpc import InferenceAsyncStub  # exists only for type checkers

P = TypeVar("P", bound=Resumable)
T = TypeVar("T")

ABANDON_S = 1.0
"""How long a cancelled task waits for the server to report the session's position."""


class AsyncReconnectingStream(Generic[P]):
    """Concurrent exchanges of one event loop take turns. Another event loop gets ConcurrentUseError."""

    def __init__(self, stub: InferenceAsyncStub, protocol: P, name: str = "session") -> None:
        """name: what the stream carries, for errors."""
        self._stub = stub
        self._protocol = protocol
        self._name = name
        self._loop = LoopCheck(name)
        self._stream = AsyncStream(stub, protocol)
        self._turn = asyncio.Lock()
        self._backoff = Backoff(0.0 if protocol.recovery is None else protocol.recovery.timeout_s)
        self._lost_by: CarouselError | None = None
        self._repeat: RepeatError | None = None
        self._num_resumes = 0

    async def run(self, exchange: Exchange[T], deadline: Deadline, *, is_closing: bool = False) -> T:
        """Runs an exchange and returns its result: see `ReconnectingStream.run`.

        If the task is cancelled, the exchange is dropped, and its feed or score is cancelled at the server.
        """
        self._loop.check()
        try:
            async with asyncio.timeout(deadline.remaining()) as limit, self._turn:
                try:
                    return await self._run(exchange, deadline, is_closing)
                except asyncio.CancelledError:
                    if not limit.expired():
                        await self._abandon()
                    raise
        except TimeoutError:
            raise deadline.exceeded() from None

    async def cancel(self: AsyncReconnectingStream[SessionProtocol], deadline: Deadline) -> int:
        """Cancels what is in flight, including another task's call: see `ReconnectingStream.cancel`."""
        self._loop.check()
        request = self._protocol.interrupt()
        if request is not None:
            self.post(request)
        await self.run(self._protocol.synchronize(), deadline)
        return self._protocol.position

    async def rewind(
        self: AsyncReconnectingStream[SessionProtocol],
        position: int,
        rewind: Callable[[], Awaitable[object]],
        deadline: Deadline,
    ) -> None:
        """Rewinds the session, after cancelling what is in flight: see `ReconnectingStream.rewind`."""
        self._loop.check()
        try:
            async with asyncio.timeout(deadline.remaining()), self._turn:
                await self._rewind(position, rewind, deadline)
        except TimeoutError:
            raise deadline.exceeded() from None

    def post(self, request: pb.StreamRequest) -> None:
        """Sends a request whose answer another exchange waits for: see `ReconnectingStream.post`."""
        if self._lost_by is None:
            self._stream.post(request)

    async def end(self, deadline: Deadline) -> None:
        """See `AsyncStream.end`. Does nothing in a forked process: the stream belongs to the parent."""
        if self._loop.is_here:
            await self._stream.end(deadline)

    async def _abandon(self) -> None:
        """Cancels the feed or score of a cancelled task, and waits up to `ABANDON_S` to learn the session's position.

        Without an answer, the next exchange learns it, and raises PositionMismatchError if the feed moved the session.
        """
        protocol = self._protocol
        if not isinstance(protocol, SessionProtocol) or not protocol.is_working or self._lost_by is not None:
            return
        with suppress(asyncio.CancelledError, TimeoutError, CarouselError):  # the caller raises the CancelledError
            async with asyncio.timeout(ABANDON_S):
                await self._run(protocol.synchronize(), Deadline(None))

    async def _rewind(
        self: AsyncReconnectingStream[SessionProtocol],
        position: int,
        rewind: Callable[[], Awaitable[object]],
        deadline: Deadline,
    ) -> None:
        for attempt in range(MAX_REWINDS):
            await self._run(self._protocol.synchronize(), deadline)
            num_resumes = self._num_resumes
            self._protocol.rewinding(position)
            try:
                await rewind()
            except CarouselError:
                await self._run(self._protocol.synchronize(), deadline)
                self._protocol.rewinding(None)
                if self._num_resumes == num_resumes or attempt == MAX_REWINDS - 1:
                    raise
            else:
                self._protocol.rewound(position)
                return

    async def _run(self, exchange: Exchange[T], deadline: Deadline, is_closing: bool = False) -> T:
        if self._protocol.recovery is None:
            return await self._stream.run(exchange, deadline)
        try:
            request = next(exchange)
            while True:
                request = exchange.send(await self._answer(request, is_closing))
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            self._backoff.pause(time.monotonic())

    async def _answer(self, request: pb.StreamRequest | None, is_closing: bool) -> pb.StreamResponse:
        """Sends a request, if there is one. Returns the next response. Resumes the session as often as needed."""
        recovery = self._protocol.recovery
        assert recovery is not None  # noqa: S101  # `_run` has checked it
        if request is not None and self._lost_by is None:
            self._stream.post(request)
        while True:
            if recovery.backlog:
                return recovery.backlog.popleft()
            if self._lost_by is not None:
                await self._reconnect(is_closing)
                continue
            if self._repeat is not None:
                await self._wait(self._repeat.error)
                self._stream.post(self._repeat.request)
                self._repeat = None
            received = await self._stream.receive()
            try:
                if isinstance(received, CarouselError):
                    recovery.stream_ended(received)
                    raise LostError(received)
                has_progress = recovery.received(received)
            except LostError as lost:
                await self._lose(lost.error)
            except RepeatError as repeat:
                self._repeat = repeat
                self._backoff.begin(time.monotonic())
            except CarouselError as error:
                raise self._protocol.lost(error) from None
            else:
                if has_progress:
                    self._backoff.reset()
                return received

    async def _lose(self, error: CarouselError) -> None:
        if self._protocol.recovery is None or not self._protocol.recovery.is_open:
            await self._stream.end(Deadline(0))
            raise self._protocol.lost(error)
        self._lost_by = error  # set before the wait, which may be cancelled
        self._backoff.begin(time.monotonic())
        await self._stream.end(Deadline(0))

    async def _reconnect(self, is_closing: bool) -> None:
        """Resumes the session on a new stream, and sends the pending requests again."""
        self._backoff.begin(time.monotonic())
        attempts = Attempts()
        while self._lost_by is not None:
            error = self._lost_by
            if not attempts.can_help(error):
                raise self._protocol.lost(error)
            if attempts.count and is_closing:
                raise copy.copy(error)
            await self._wait(error)
            attempts.count += 1
            await self._attempt()

    async def _wait(self, error: CarouselError) -> None:
        try:
            delay_s = self._backoff.next(error, time.monotonic())
        except CarouselError:
            self._backoff.reset()  # a later call gets the full time again
            raise copy.copy(error) from None
        await asyncio.sleep(delay_s)

    async def _attempt(self) -> None:
        self._stream = AsyncStream(self._stub, self._protocol)
        limit = asyncio.timeout(max(LEAST_ATTEMPT_S, self._backoff.left_s(time.monotonic())))
        try:
            async with limit:
                requests = await self._resume()
        except LostError as lost:
            self._lost_by = lost.error
        except TimeoutError:
            self._lost_by = UnavailableError(f"the {self._name} was not resumed within {self._backoff.timeout_s:g} s")
        except CarouselError as error:
            self._lost_by = error
        else:
            for request in requests:
                self._stream.post(request)
            self._lost_by = self._repeat = None
            self._num_resumes += 1
        finally:
            if self._lost_by is not None:  # also after cancellation: then the next call resumes the session
                await self._stream.end(Deadline(0))

    async def _resume(self) -> list[pb.StreamRequest]:
        exchange = self._protocol.resume(self._stream.post)
        try:
            request = next(exchange)
            while True:
                if request is not None:
                    self._stream.post(request)
                received = await self._stream.receive()
                if isinstance(received, CarouselError):
                    raise received
                request = exchange.send(received)
        except StopIteration as end:
            requests: list[pb.StreamRequest] = end.value
            return requests
