"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from carousel import _answers, _requests
from carousel._channel import MAX_MESSAGE_BYTES, ChannelOptions, Metadata, all_options, session_metadata
from carousel._generation import GenerationState
from carousel._requests import Source
from carousel.batch import SessionBatch
from carousel.session import Generation, Session
from carousel.v1 import models_pb2, sessions_pb2
from carousel.v1.inference_pb2_grpc import InferenceStub
from carousel.v1.models_pb2_grpc import ModelsStub
from carousel.v1.sessions_pb2_grpc import SessionsStub
from carousel.values import DecodingOptions, ModelInfo, SessionInfo, TargetScore

Request = TypeVar("Request")
Response = TypeVar("Response")


class Client:
    """A connection to a server, made when it is first needed. Threads may share it. Close it, or use `with`."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        channel_options: ChannelOptions = (),
    ) -> None:
        """target: such as `localhost:50051`. timeout: seconds for every call that sets none; None for no limit.

        credentials: for TLS; plain text without. max_message_bytes: the largest answer taken. channel_options: gRPC's
        own, such as `("grpc.keepalive_time_ms", 20_000)`; they win over ours.
        """
        options = all_options(channel_options, max_message_bytes)
        self._channel = (
            grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)
        )
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
        timeout: float | None = None,
        **decoding: Unpack[DecodingOptions],
    ) -> Generation:
        """One whole generation, in a session that lives as long as the call. It starts at once.

        source: text, or names, or ids; for models with an encoder. version: 0 means the newest. variant: which way of
        computing it, such as `int8`; empty for `fp32`. prompt: target tokens to consume first. decoding: see
        `DecodingOptions`. timeout: seconds for the whole of it.

        The iterator raises NotFoundError for a model that is not served, InvalidArgumentError, ResourceExhaustedError,
        DeadlineExceededError, UnavailableError.
        """
        request = _requests.generate_request(
            model,
            source=source,
            version=version,
            variant=variant,
            prompt=prompt,
            decoding=_requests.decoding_message(**decoding),
        )
        call = self._inference.Generate(request, timeout=self._timeout if timeout is None else timeout)
        state = GenerationState()

        def pull() -> None:
            try:
                for response in call:
                    state.receive_response(response)
                    if state.is_ready and not state.is_ended:
                        return
                state.stop()
            except grpc.RpcError as error:
                state.fail(_answers.rpc_error(error))

        def leave() -> None:
            state.leave()
            call.cancel()

        return Generation(state, pull, leave)

    def score(
        self,
        model: str,
        targets: Sequence[Source],
        source: Source | None = None,
        *,
        version: int = 0,
        variant: str = "",
        prompt: Source | None = None,
        with_end: bool = False,
        timeout: float | None = None,
    ) -> tuple[TargetScore, ...]:
        """How likely targets are, in a session that lives as long as the call.

        targets: a list of sequences, each text, or names, or ids. source, version, variant, prompt: as in `generate`.
        with_end: each target with the end token after it. timeout: seconds; default the client's.

        Raises NotFoundError, InvalidArgumentError, ResourceExhaustedError, DeadlineExceededError, UnavailableError.
        """
        request = _requests.score_request(
            model, targets, source=source, version=version, variant=variant, prompt=prompt, with_end=with_end
        )
        response = _call(self._inference.Score, request, self._timeout if timeout is None else timeout)
        return _answers.target_scores(response.scores)

    def session(
        self,
        model: str,
        source: Source | None = None,
        *,
        version: int = 0,
        variant: str = "",
        session_id: str = "",
        first: bool = False,
        top_k: int | None = None,
        logits: bool = False,
        timeout: float | None = None,
    ) -> Session:
        """Opens a session, on a stream of its own.

        source: text, or names, or ids; for models with an encoder. version: 0 means the newest. variant: which way of
        computing it, such as `int8`; empty for `fp32`. session_id: 1 to 128 of A-Z a-z 0-9 . _ : -; empty to have one
        made. first: also tell what may come first, as `Session.first`; top_k
        and logits say how and imply it. timeout: seconds for the opening and for every call of the session that sets
        none; default the client's.

        Raises NotFoundError, InvalidArgumentError, AlreadyExistsError for a session id in use, ResourceExhaustedError
        when the server is full, DeadlineExceededError, UnavailableError.
        """
        request = _requests.open_message(
            model, source=source, version=version, variant=variant, first=first, top_k=top_k, logits=logits
        )
        return Session(self._inference, request, session_id, self._timeout if timeout is None else timeout)

    def batch(self, model: str, *, version: int = 0, variant: str = "", timeout: float | None = None) -> SessionBatch:
        """Many sessions of one model on one stream, stepping together: for gateways. None is open yet.

        version, variant: as in `session`. timeout: seconds for its calls that set none; default the client's.
        """
        timeout = self._timeout if timeout is None else timeout
        return SessionBatch(self._inference, model, version=version, variant=variant, timeout=timeout)

    def models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """Every version of every model, served or not, by name and version."""
        request = models_pb2.ModelsListRequest()
        response = _call(self._models.List, request, self._timeout if timeout is None else timeout)
        return tuple(map(_answers.model_info, response.models))

    def model(self, name: str, version: int = 0, *, timeout: float | None = None) -> ModelInfo:
        """One version of a model; 0 means the newest that is served. Raises NotFoundError."""
        request = _requests.model_request(name, version)
        response = _call(self._models.Get, request, self._timeout if timeout is None else timeout)
        return _answers.model_info(response.model)


class Sessions:
    """The live sessions of a server, whoever opened them: `Client.sessions`. Threads may share it."""

    def __init__(self, stub: SessionsStub, timeout: float | None) -> None:
        self._stub = stub
        self._timeout = timeout

    def list(self, model: str | None = None, *, page_size: int = 0) -> Iterator[SessionInfo]:
        """All sessions, or those of one model, in the order in which they were opened.

        Pages are fetched as they are needed. page_size: 1 to 1,000; 0 for the server's default.
        """
        request: sessions_pb2.SessionsListRequest | None = _requests.sessions_request(model, page_size)
        while request is not None:
            response = _call(self._stub.List, request, self._timeout)
            yield from map(_answers.session_info, response.sessions)
            request = _requests.next_page(request, response)

    def get(self, session_id: str) -> SessionInfo:
        """One session. Raises NotFoundError, which tells why a session that is gone went, if that is known."""
        request = sessions_pb2.SessionsGetRequest(session_id=session_id)
        response = _call(self._stub.Get, request, self._timeout, session_metadata(session_id))
        return _answers.session_info(response.session)

    def close(self, session_id: str) -> int:
        """Closes a session, whoever opened it; its owner is told. Returns its last position. Raises NotFoundError."""
        request = sessions_pb2.SessionsCloseRequest(session_id=session_id)
        return _call(self._stub.Close, request, self._timeout, session_metadata(session_id)).position


def _call(
    method: grpc.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    timeout: float | None,
    metadata: Metadata = (),
) -> Response:
    try:
        return method(request, timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        raise _answers.rpc_error(error) from error
