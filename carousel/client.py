"""The blocking client."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self, Unpack

import grpc

from carousel import _answers, _requests
from carousel._backoff import CallBackoff
from carousel._channel import MAX_MESSAGE_BYTES, ChannelOptions, all_credentials, all_options
from carousel._constants import Constants
from carousel._deadline import Deadline
from carousel._decoding import decoding_message
from carousel._generation import GenerationState
from carousel._model_calls import ModelCalls
from carousel._protocol import SessionProtocol
from carousel._recovery import Recovery
from carousel._requests import Source
from carousel._step_calls import StepCalls
from carousel._tensors import Features, Vector
from carousel._turn import Turn
from carousel._unary import retried
from carousel.batch import SessionBatch
from carousel.errors import CarouselError
from carousel.session import Generation, Session
from carousel.sessions import Sessions
from carousel.v1 import inference_pb2 as pb
from carousel.v1.inference_pb2_grpc import InferenceStub
from carousel.v1.models_pb2_grpc import ModelsStub
from carousel.v1.sessions_pb2_grpc import SessionsStub
from carousel.values import DecodingOptions, TargetScore
from carousel.watch import WatchCalls


class Client(ModelCalls, StepCalls, WatchCalls):
    """A connection to a server, made when it is first needed. Threads may share it. Close it, or use `with`."""

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
        self._inference = InferenceStub(self._channel)
        self._models = ModelsStub(self._channel)
        self.sessions = Sessions(SessionsStub(self._channel), timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. Calls under way in other threads raise RequestCancelledError."""
        self._channel.close()

    def generate(
        self,
        model: str,
        source: Source | None = None,
        *,
        version: int = 0,
        variant: str = "",
        prompt: Source | None = None,
        constants: Constants | None = None,
        resume_timeout: float = 60.0,
        timeout: float | None = None,
        **decoding: Unpack[DecodingOptions],
    ) -> Generation:
        """One whole generation, in a session that lives as long as the call. It starts at once.

        source: text, or names, or ids; for models with an encoder. version: 0 means the newest. variant: which way of
        computing it, such as `int8`; empty for `fp32`. prompt: target tokens to consume first. constants: see
        `session`. decoding: see
        `DecodingOptions`. resume_timeout: seconds to try again after a lost connection, or when the server shuts down,
        until new tokens arrive. The same version of the model generates the tokens again, and those that have arrived
        already are dropped. timeout: seconds for the whole generation.

        A model that gives values yields `ValueToken`s. The iterator raises NotFoundError for an unknown model,
        InvalidArgumentError, ResourceExhaustedError, DeadlineExceededError, UnavailableError.
        """
        request = _requests.generate_request(
            model,
            source=source,
            version=version,
            variant=variant,
            prompt=prompt,
            constants=constants,
            decoding=decoding_message(**decoding),
        )
        deadline = Deadline(self._timeout if timeout is None else timeout)
        call = self._inference.Generate(request, timeout=deadline.remaining())
        state, backoff, turn = GenerationState(request.decoding), CallBackoff(resume_timeout), Turn("generation")

        def pull() -> None:
            with turn:
                pull_alone()

        def pull_alone() -> None:
            nonlocal call
            while True:
                try:
                    for response in call:
                        state.receive_response(response)
                        if state.is_ready and not state.is_ended:
                            return
                    state.stop()
                    return
                except grpc.RpcError as error:
                    failure, now_s = _answers.rpc_error(error), time.monotonic()
                    try:
                        time.sleep(backoff.next(failure, state.position, now_s, deadline.remaining()))
                    except CarouselError as last:
                        state.fail(last)
                        return
                request.version = state.version or request.version
                call = self._inference.Generate(request, timeout=deadline.remaining())

        def leave() -> None:
            state.leave()
            call.cancel()

        return Generation(state, pull, leave)

    def forecast(
        self,
        model: str,
        horizon: int,
        source: Source | None = None,
        *,
        features: Features | None = None,
        version: int = 0,
        variant: str = "",
        constants: Constants | None = None,
        timeout: float | None = None,
    ) -> list[Vector]:
        """Returns the next values of a model that gives values, in a session that lives as long as the call.

        horizon: steps. source, version, variant, constants, timeout: as in `generate`; its source is vectors. features:
        vectors for its steps to consume first. Raises what the iterator of `generate` raises.
        """
        generation = self.generate(
            model,
            source,
            version=version,
            variant=variant,
            prompt=features,
            constants=constants,
            timeout=timeout,
            max_tokens=horizon,
        )
        return generation.vectors()

    def score(
        self,
        model: str,
        targets: Sequence[Source],
        source: Source | None = None,
        *,
        version: int = 0,
        variant: str = "",
        prompt: Source | None = None,
        constants: Constants | None = None,
        with_end: bool = False,
        resume_timeout: float = 60.0,
        timeout: float | None = None,
    ) -> tuple[TargetScore, ...]:
        """Returns how likely targets are, in a session that lives as long as the call.

        targets: a list of sequences, each text, or names, or ids. source, version, variant, prompt, constants: as in
        `generate`. with_end: each target with the end token after it. resume_timeout: seconds to try again after a lost
        connection. timeout: seconds; default the client's.

        Raises NotFoundError, InvalidArgumentError, ResourceExhaustedError, DeadlineExceededError, UnavailableError.
        """
        request = _requests.score_request(
            model,
            targets,
            source=source,
            version=version,
            variant=variant,
            prompt=prompt,
            with_end=with_end,
            constants=constants,
        )
        own = self._timeout if timeout is None else timeout
        return _answers.target_scores(retried(self._inference.Score, request, Deadline(own), resume_timeout).scores)

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
