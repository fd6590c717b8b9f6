"""The blocking client."""

from __future__ import annotations

import secrets
from functools import partial
from types import TracebackType
from typing import Self

import grpc

from carousel import _requests
from carousel._channel import MAX_MESSAGE_BYTES, ChannelOptions, all_credentials, all_options
from carousel._constants import Constants
from carousel._generate_calls import GenerateCalls
from carousel._home import Home
from carousel._many_calls import ManyCalls
from carousel._model_calls import ModelCalls
from carousel._protocol import SessionProtocol
from carousel._recovery import Recovery
from carousel._requests import Source
from carousel._step_calls import StepCalls
from carousel.batch import SessionBatch
from carousel.session import Session
from carousel.sessions import Sessions
from carousel.v1 import inference_pb2 as pb
from carousel.v1.inference_pb2_grpc import InferenceStub
from carousel.v1.models_pb2_grpc import ModelsStub
from carousel.v1.sessions_pb2_grpc import SessionsStub
from carousel.watch import WatchCalls


class Client(GenerateCalls, ManyCalls, ModelCalls, StepCalls, WatchCalls):
    """A connection to a server, made when it is first needed. Threads may share it. Close it, or use `with`.

    It belongs to the process that makes it: pickled or copied it raises TypeError, used in a process that was forked
    from its own, FailedPreconditionError.
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
        """target: such as `localhost:50051`. timeout: seconds for every call that sets none; None for no limit.

        credentials: for TLS, such as `grpc.ssl_channel_credentials(ca, key, certificate)`; plain text without. token:
        identifies the caller to the server; without TLS it is sent to servers on this machine only.
        max_message_bytes: the largest response accepted. channel_options: gRPC's own, such as
        `("grpc.keepalive_time_ms", 20_000)`; they override ours.
        """
        options = all_options(channel_options, max_message_bytes)
        secured = all_credentials(credentials, token)
        make = grpc.insecure_channel if secured is None else partial(grpc.secure_channel, credentials=secured)
        self._channel = make(target, options=options)
        self._timeout = timeout
        self._home = Home("client")
        self._inference = self._home.guarded(InferenceStub(self._channel))
        self._models = self._home.guarded(ModelsStub(self._channel))
        self.sessions = Sessions(self._home.guarded(SessionsStub(self._channel)), timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. Calls under way in other threads raise RequestCancelledError, later ones
        FailedPreconditionError. Closing it again does nothing; neither does closing it in a forked process."""
        if self._home.is_here:  # a forked process leaves the connection to the one that made it
            self._home.is_closed = True
            self._channel.close()

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
    ) -> Session:
        """Opens a session, on a stream of its own.

        source: text, or names, or ids; for models with an encoder. version: 0 means the newest. variant: which way of
        computing it, such as `int8`; empty for `fp32`. session_id: 1 to 128 of A-Z a-z 0-9 . _ : -; empty to have one
        made. constants: what the session keeps, by name, such as `{"language": 3}`: those that `ModelInfo.constants`
        lists, and each that has no default. first: also return what may come first, as `Session.first`; top_k, logits
        and trace say how, and imply it. timeout: seconds for the opening and for every call of the session that sets
        none; default the client's.
        on_disconnect: what the server does with the session when its stream is lost: `hold` keeps it in memory, `keep`
        in the store, for `hold_s` seconds, by default the server's; `free` closes it. Unless it is `free` the client
        resumes the session on another stream, or on another server that has the same store, by itself. Its calls wait
        meanwhile, for up to `resume_timeout` seconds from the first loss until a request makes progress. durability:
        `checkpoint` stores the session at intervals, and the client replays what came after; `strict` stores everything
        before it is answered; `none` leaves the session in memory, so it ends with its server. Default: `checkpoint`,
        or `none` with `free`. unattended: a generation continues while no stream has the session.

        Raises NotFoundError, InvalidArgumentError, AlreadyExistsError for a session id in use, ResourceExhaustedError
        when the server is full, DeadlineExceededError, UnavailableError.
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
            # to be resumed, the session needs an id that is known from the start
            session_id = session_id or secrets.token_urlsafe(9)
        protocol = SessionProtocol(session_id, recovery)
        return Session(self._inference, request, protocol, self._timeout if timeout is None else timeout, self.sessions)

    def resume(self, session_id: str, *, resume_timeout: float = 60.0, timeout: float | None = None) -> Session:
        """Resumes a session that was opened elsewhere: held, stored, restored from a snapshot, a fork, or on another
        stream, which loses it. `Session.position` tells where it stands. resume_timeout, timeout: as in `session`.
        Raises NotFoundError, whose metadata tells how a session ended; FailedPreconditionError when this server cannot
        resume it; UnavailableError.
        """
        request = pb.Open(resume=pb.Resume())
        protocol = SessionProtocol(session_id, Recovery(None, resume_timeout))
        return Session(self._inference, request, protocol, self._timeout if timeout is None else timeout, self.sessions)

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
    ) -> SessionBatch:
        """Makes a batch: many sessions of one model on one stream that step together, for gateways. None is open yet.

        version, variant, on_disconnect, hold_s, durability, resume_timeout: as in `session`, of each of its sessions;
        with `free` the batch ends with its stream. timeout: seconds for its calls that set none; default the client's.
        """
        return SessionBatch(
            self._inference,
            model,
            version=version,
            variant=variant,
            policy=_requests.SessionPolicy(on_disconnect, hold_s, durability, unattended=False),
            resume_timeout=resume_timeout,
            timeout=self._timeout if timeout is None else timeout,
        )
