"""Runs exchanges on one stream after another, as long as what the stream carries can be resumed.

A call that reaches its deadline ends only itself. The session stays lost until a later call resumes it. The subclass
`AsyncReconnectingStream` says who may call when.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from carousel._async_stream import AsyncStream
from carousel._backoff import Attempts, Backoff
from carousel._deadline import Deadline
from carousel._exchange import Exchange, LostError, RepeatError
from carousel._protocol import SessionProtocol
from carousel._resumable import Resumable
from carousel.errors import CarouselError, UnavailableError
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc

Owner = TypeVar("Owner", bound=Resumable)
T = TypeVar("T")

LEAST_ATTEMPT_S = 1.0
"""The least time for one attempt to resume, even when the recovery has less time left."""
MAX_REWINDS = 20
"""How often a rewind is attempted when the connection is lost during it."""


class AsyncExchangeRunner(Generic[Owner]):
    """Runs one exchange at a time."""

    def __init__(self, stub: inference_pb2_grpc.InferenceAsyncStub, protocol: Owner, name: str) -> None:
        """name: what the stream carries, for errors."""
        self._stub = stub
        self._protocol = protocol
        self._name = name
        self._backoff = Backoff(0.0 if protocol.recovery is None else protocol.recovery.timeout_s)
        self._stream = AsyncStream(stub, protocol)  # after `Backoff` has checked its argument
        self._lost_by: CarouselError | None = None
        self._repeat: RepeatError | None = None
        self._num_resumes = 0

    def post(self, request: pb.StreamRequest) -> None:
        """Sends a request whose answer another exchange waits for. While the stream is lost, the resume will send
        it."""
        if self._lost_by is None:
            self._stream.post(request)

    def _interrupt(self) -> None:
        """Does what another caller asked for. Called before each wait, and after `AsyncStream.wake`.

        Only the blocking client overrides it, because its `cancel` comes from another thread.
        """

    async def _run(self, exchange: Exchange[T], deadline: Deadline, is_closing: bool = False) -> T:
        """Runs an exchange. deadline: without a limit in asyncio, whose caller has an `asyncio.timeout` around it."""
        try:
            request = next(exchange)
            while True:
                if self._protocol.recovery is None:
                    response = await self._answer_once(request, deadline)
                else:
                    response = await self._answer(request, deadline, is_closing)
                request = exchange.send(response)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            self._backoff.pause(time.monotonic())

    async def _rewind(
        self: AsyncExchangeRunner[SessionProtocol],
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

    async def _answer_once(self, request: pb.StreamRequest | None, deadline: Deadline) -> pb.StreamResponse:
        """Sends a request, if there is one. Returns the next response. For an owner that ends with its stream."""
        if request is not None:
            self._stream.post(request)
        while (received := await self._stream.receive(deadline)) is None:
            self._interrupt()
        if isinstance(received, CarouselError):
            raise self._protocol.lost(received)
        return received

    async def _answer(
        self, request: pb.StreamRequest | None, deadline: Deadline, is_closing: bool
    ) -> pb.StreamResponse:
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
                await self._reconnect(deadline, is_closing)
                continue
            if self._repeat is not None:
                await self._wait(self._repeat.error, deadline)
                self._backoff.attempted()
                self._stream.post(self._repeat.request)
                self._repeat = None
            received = await self._stream.receive(deadline)
            if received is None:
                continue
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
        self._lost_by = error  # set before the wait, which may be interrupted
        self._backoff.begin(time.monotonic())
        await self._stream.end(Deadline(0))

    async def _reconnect(self, deadline: Deadline, is_closing: bool) -> None:
        """Resumes the session on a new stream, and sends the pending requests again."""
        self._backoff.begin(time.monotonic())
        attempts = Attempts()
        while self._lost_by is not None:
            error = self._lost_by
            if not attempts.can_help(error):
                raise self._protocol.lost(error)
            if attempts.count and is_closing:
                raise copy.copy(error)
            await self._wait(error, deadline)
            attempts.count += 1
            await self._attempt(deadline)
            self._backoff.attempted()

    async def _wait(self, error: CarouselError, deadline: Deadline) -> None:
        try:
            delay_s = self._backoff.next(error, time.monotonic())
        except CarouselError:
            self._backoff.reset()  # a later call gets the full time again
            raise copy.copy(error) from None
        remaining_s = deadline.remaining()
        await asyncio.sleep(delay_s if remaining_s is None else min(delay_s, remaining_s))
        if deadline.remaining() == 0.0:
            raise deadline.exceeded() from error

    async def _attempt(self, deadline: Deadline) -> None:
        self._stream = AsyncStream(self._stub, self._protocol)
        limit = deadline.sooner(max(LEAST_ATTEMPT_S, self._backoff.remaining_s(time.monotonic())))
        try:
            requests = await self._resume(limit)
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
            if self._lost_by is not None:  # also after an interruption: then the next call resumes the session
                await self._stream.end(Deadline(0))

    async def _resume(self, deadline: Deadline) -> list[pb.StreamRequest]:
        exchange = self._protocol.resume(self._stream.post)
        try:
            request = next(exchange)
            while True:
                if request is not None:
                    self._stream.post(request)
                while (received := await self._stream.receive(deadline)) is None:
                    pass
                if isinstance(received, CarouselError):
                    raise received
                request = exchange.send(received)
        except StopIteration as end:
            requests: list[pb.StreamRequest] = end.value
            return requests
