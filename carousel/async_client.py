"""The asyncio client: `carousel.client` with asynchronous calls."""

from __future__ import annotations

import secrets
from types import TracebackType
from typing import Self

import grpc

from carousel import _requests
from carousel._async_generate_calls import AsyncGenerateCalls
from carousel._async_many_calls import AsyncManyCalls
from carousel._async_model_calls import AsyncModelCalls
from carousel._async_step_calls import AsyncStepCalls
from carousel._channel import MAX_MESSAGE_BYTES, ChannelOptions, all_credentials, all_options
from carousel._constants import Constants
from carousel._home import Home
from carousel._protocol import SessionProtocol
from carousel._recovery import Recovery
from carousel._requests import Source
from carousel.async_batch import AsyncSessionBatch
from carousel.async_session import SessionOpening
from carousel.async_sessions import AsyncSessions
from carousel.async_watch import AsyncWatchCalls
from carousel.v1 import inference_pb2 as pb
from carousel.v1.inference_pb2_grpc import InferenceStub
from carousel.v1.models_pb2_grpc import ModelsStub
from carousel.v1.sessions_pb2_grpc import SessionsStub


class AsyncClient(AsyncGenerateCalls, AsyncManyCalls, AsyncModelCalls, AsyncStepCalls, AsyncWatchCalls):
    """A connection to one server. It connects at the first call. Tasks of the event loop that made it may share it.

    Close it, or use `async with`. It can be used only in the process that made it: see `Client`.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        channel_options: ChannelOptions = (),
    ) -> None:
        """See `Client`."""
        options = all_options(channel_options, max_message_bytes)
        secured = all_credentials(credentials, token)
        self._channel = (
            grpc.aio.secure_channel(target, secured, options) if secured else grpc.aio.insecure_channel(target, options)
        )
        self._timeout = timeout
        self._home = Home("client")
        self._inference = self._home.guarded(InferenceStub(self._channel))
        self._models = self._home.guarded(ModelsStub(self._channel))
        self.sessions = AsyncSessions(self._home.guarded(SessionsStub(self._channel)), timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. Calls in progress in other tasks raise RequestCancelledError, later calls
        FailedPreconditionError: see `Client.close`."""
        if self._home.is_here:  # in a forked process, the connection still belongs to the parent
            self._home.is_closed = True
            await self._channel.close()

    def session(
        self,
        model: str,
        source: Source | None = None,
        *,
        version: int = 0,
        variant: str = "",
        session_id: str = "",
        constants: Constants | None = None,
        first: bool = False,
        top_k: int | None = None,
        logits: bool = False,
        trace: bool = False,
        on_disconnect: str = "hold",
        hold_s: float | None = None,
        durability: str | None = None,
        unattended: bool = False,
        resume_timeout: float = 60.0,
        timeout: float | None = None,
    ) -> SessionOpening:
        """Opens a session, on its own stream, when the result is awaited or entered: see `Client.session`."""
        policy = _requests.SessionPolicy(on_disconnect, hold_s, durability, unattended)
        request = _requests.open_message(
            model,
            source=source,
            version=version,
            variant=variant,
            first=first,
            top_k=top_k,
            logits=logits,
            trace=trace,
            policy=policy,
            constants=constants,
        )
        recovery = None if on_disconnect == "free" else Recovery(request, resume_timeout)
        if recovery is not None:
            session_id = session_id or secrets.token_urlsafe(
                9
            )  # to resume the session, the client must know its id before the server answers
        protocol = SessionProtocol(session_id, recovery)
        return SessionOpening(
            self._inference, request, protocol, self._timeout if timeout is None else timeout, self.sessions
        )

    def resume(self, session_id: str, *, resume_timeout: float = 60.0, timeout: float | None = None) -> SessionOpening:
        """Resumes an existing session: see `Client.resume`."""
        request = pb.Open(resume=pb.Resume())
        protocol = SessionProtocol(session_id, Recovery(None, resume_timeout))
        return SessionOpening(
            self._inference, request, protocol, self._timeout if timeout is None else timeout, self.sessions
        )

    def batch(
        self,
        model: str,
        *,
        version: int = 0,
        variant: str = "",
        on_disconnect: str = "hold",
        hold_s: float | None = None,
        durability: str | None = None,
        resume_timeout: float = 60.0,
        timeout: float | None = None,
    ) -> AsyncSessionBatch:
        """Makes a batch of sessions of one model on one stream: see `Client.batch`."""
        policy = _requests.SessionPolicy(on_disconnect, hold_s, durability, unattended=False)
        return AsyncSessionBatch(
            self._inference,
            model,
            version=version,
            variant=variant,
            policy=policy,
            resume_timeout=resume_timeout,
            timeout=self._timeout if timeout is None else timeout,
        )
