"""The asyncio client."""

from __future__ import annotations

import secrets
from types import TracebackType
from typing import Self

import grpc

from carousel import _arguments, _requests
from carousel._async_generate_calls import AsyncGenerateCalls
from carousel._async_many_calls import AsyncManyCalls
from carousel._async_model_calls import AsyncModelCalls
from carousel._async_opening import SessionOpening
from carousel._async_step_calls import AsyncStepCalls
from carousel._channel import MAX_MESSAGE_BYTES, ChannelOptions, all_credentials, all_options, open_async_channel
from carousel._constants import Constants
from carousel._home import Home
from carousel._protocol import SessionProtocol
from carousel._recovery import Recovery
from carousel._requests import Source
from carousel.async_batch import AsyncSessionBatch
from carousel.async_sessions import AsyncSessions
from carousel.async_watch import AsyncWatchCalls
from carousel.v1 import inference_pb2 as pb
from carousel.v1.inference_pb2_grpc import InferenceStub
from carousel.v1.models_pb2_grpc import ModelsStub
from carousel.v1.sessions_pb2_grpc import SessionsStub


class AsyncClient(AsyncGenerateCalls, AsyncManyCalls, AsyncModelCalls, AsyncStepCalls, AsyncWatchCalls):
    """A connection to one server. It connects at the first call. Tasks of the event loop that made it may share it.

    Close it, or use `async with`. It can be used only in the process that made it: pickling or copying it raises
    TypeError, and calls in a forked process raise FailedPreconditionError.
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
        """Does not connect yet.

        target: such as `localhost:50051`.
        timeout: default in seconds for every call; None for no limit.
        credentials: for TLS, such as `grpc.ssl_channel_credentials(ca, key, certificate)`. None for plain text.
        token: identifies the caller to the server. Without TLS it is sent only to servers on this machine.
        max_message_bytes: the largest response that the client accepts; -1 for no limit.
        channel_options: gRPC options, such as `("grpc.keepalive_time_ms", 20_000)`; they override the client's own.

        Raises TypeError and InvalidArgumentError, such as for a token that no header can hold.
        """
        self._timeout = _arguments.timeout(timeout)
        options = all_options(channel_options, max_message_bytes)
        self._channel = open_async_channel(_arguments.address(target), all_credentials(credentials, token), options)
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
        FailedPreconditionError. Does nothing when it is already closed, or in a forked process."""
        if self._home.is_here and not self._home.is_closed:  # a forked process's connection belongs to the parent
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
        """Opens a session, on its own stream, when the result is awaited or entered.

        source: text, token names, token ids or feature vectors; for models with an encoder.
        version: 0 for the newest.
        variant: how the model is computed, such as `int8`; empty for `fp32`.
        session_id: 1 to 128 of A-Z a-z 0-9 . _ : -; empty to let the client or the server choose one.
        constants: values that stay the same for the whole session, by name, such as `{"language": 3}`. Give each one in
            `ModelInfo.constants` that has no default.
        first: also return the prediction before anything is fed, as `AsyncSession.first`. top_k, logits and trace have
            the meaning that they have in `AsyncSession.feed`, and imply `first`.
        on_disconnect: what the server does when the session's stream is lost. `hold` keeps the session in memory and
            `keep` in the store, for `hold_s` seconds; `free` closes it. Except with `free`, the client resumes the
            session by itself, on another stream or on another server with the same store.
        hold_s: seconds; default the server's.
        durability: `checkpoint` stores the session at intervals, and after a loss the client replays what came later.
            `strict` stores each change before it is answered. `none` keeps the session in memory only, so it ends with
            its server. Default: `checkpoint`, or `none` with on_disconnect `free`.
        unattended: a generation continues while the session has no stream.
        resume_timeout: how many seconds calls wait for a resume, from the loss until a request makes progress.
        timeout: seconds for the opening, and the default for the session's calls; default the client's.

        Raises NotFoundError, InvalidArgumentError, AlreadyExistsError when the session id is in use,
        ResourceExhaustedError when the server is full, DeadlineExceededError, UnavailableError.
        """
        request = _requests.open_message(
            model,
            source=source,
            version=version,
            variant=variant,
            first=first,
            top_k=top_k,
            logits=logits,
            trace=trace,
            policy=_requests.SessionPolicy(on_disconnect, hold_s, durability, unattended),
            constants=constants,
        )
        recovery = None if on_disconnect == "free" else Recovery(request, resume_timeout)
        if recovery is not None:
            # to resume the session, the client must know its id before the server answers
            session_id = session_id or secrets.token_urlsafe(9)
        protocol = SessionProtocol(session_id, recovery)
        timeout = self._timeout if timeout is None else timeout
        return SessionOpening(self._inference, request, protocol, timeout, self.sessions)

    def resume(self, session_id: str, *, resume_timeout: float = 60.0, timeout: float | None = None) -> SessionOpening:
        """Resumes an existing session: held, stored, restored from a snapshot, forked, or open on another stream. The
        other stream loses the session. `AsyncSession.position` is the session's position.

        resume_timeout, timeout: as in `session`. Raises NotFoundError, whose metadata says how a session ended;
        FailedPreconditionError when this server cannot resume it; UnavailableError.
        """
        request = pb.Open(resume=pb.Resume())
        protocol = SessionProtocol(session_id, Recovery(None, resume_timeout))
        timeout = self._timeout if timeout is None else timeout
        return SessionOpening(self._inference, request, protocol, timeout, self.sessions)

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
        """Makes a batch: many sessions of one model that step together on one stream, for gateways. It has no sessions
        yet.

        version, variant, on_disconnect, hold_s, durability, resume_timeout: as in `session`, for each of its sessions.
        With on_disconnect `free`, the batch ends with its stream. timeout: default in seconds for its calls; default
        the client's.
        """
        return AsyncSessionBatch(
            self._inference,
            model,
            version=version,
            variant=variant,
            policy=_requests.SessionPolicy(on_disconnect, hold_s, durability, unattended=False),
            resume_timeout=resume_timeout,
            timeout=self._timeout if timeout is None else timeout,
        )
