"""A session's or batch's connection for asyncio: whose turn it is, and what happens when a task is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from carousel._async_exchange_runner import AsyncExchangeRunner, Owner
from carousel._async_turn import LoopCheck
from carousel._deadline import Deadline
from carousel._exchange import Exchange
from carousel._home import check_client
from carousel._protocol import SessionProtocol
from carousel.errors import CarouselError
from carousel.v1 import inference_pb2_grpc

T = TypeVar("T")

ABANDON_S = 1.0
"""How long a cancelled task waits for the server to report the session's position."""


class AsyncReconnectingStream(AsyncExchangeRunner[Owner]):
    """Concurrent exchanges of one event loop take turns. Another event loop gets ConcurrentUseError."""

    def __init__(self, stub: inference_pb2_grpc.InferenceAsyncStub, protocol: Owner, name: str = "session") -> None:
        """name: what the stream carries, for errors."""
        self._loop = LoopCheck(name)
        self._turn = asyncio.Lock()
        super().__init__(stub, protocol, name)

    async def run(self, exchange: Exchange[T], deadline: Deadline, *, is_closing: bool = False) -> T:
        """Runs an exchange and returns its result: see `ReconnectingStream.run`.

        If the task is cancelled, the exchange is dropped, and its feed or score is cancelled at the server.
        """
        self._loop.check()
        if not is_closing:
            check_client(self._stub)
        try:
            async with asyncio.timeout(deadline.remaining()) as limit, self._turn:
                try:
                    return await self._run(exchange, Deadline(None), is_closing)
                except asyncio.CancelledError:
                    if not limit.expired():
                        await self._abandon()
                    raise
        except TimeoutError:
            raise deadline.exceeded() from None

    async def cancel(self: AsyncReconnectingStream[SessionProtocol], deadline: Deadline) -> int:
        """Cancels what is in flight, including another task's call: see `ReconnectingStream.cancel`."""
        self._loop.check()
        check_client(self._stub)
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
        check_client(self._stub)
        try:
            async with asyncio.timeout(deadline.remaining()), self._turn:
                await self._rewind(position, rewind, Deadline(None))
        except TimeoutError:
            raise deadline.exceeded() from None

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
