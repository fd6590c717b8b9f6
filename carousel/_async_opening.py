"""What `AsyncClient.session` and `AsyncClient.resume` return. The blocking client returns an open session instead."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from types import TracebackType

from carousel._home import Unpicklable
from carousel._protocol import SessionProtocol
from carousel.async_session import AsyncSession
from carousel.async_sessions import AsyncSessions
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc


class SessionOpening(Unpicklable):
    """What `AsyncClient.session` returns: `await` it to get an open session, or enter it with `async with`.

    It opens one session. Awaiting or entering it again, also from other tasks, returns the same session.
    """

    def __init__(
        self,
        stub: inference_pb2_grpc.InferenceAsyncStub,
        request: pb.Open,
        protocol: SessionProtocol,
        timeout: float | None,
        sessions: AsyncSessions,
    ) -> None:
        self._arguments = (stub, request, protocol, timeout, sessions)
        self._session: AsyncSession | None = None
        self._lock = asyncio.Lock()

    def __await__(self) -> Generator[object, None, AsyncSession]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncSession:
        return await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def _open(self) -> AsyncSession:
        async with self._lock:  # a second task waits, and does not open a second session
            if self._session is None:
                self._session = await AsyncSession._opened(*self._arguments)
            return self._session
