"""The asyncio client: `carousel.client` with awaits."""

# ruff: noqa: ASYNC109 - the same `timeout` as in the blocking client; it also covers the wait for a turn

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import grpc

from carousel import _answers, _requests
from carousel._channel import MAX_MESSAGE_BYTES, ChannelOptions, Metadata, all_options, session_metadata
from carousel._generation import GenerationState
from carousel._requests import Source
from carousel.async_batch import AsyncSessionBatch
from carousel.async_session import AsyncGeneration, SessionOpening
from carousel.errors import RequestCancelledError
from carousel.v1 import models_pb2, sessions_pb2
from carousel.v1.inference_pb2_grpc import InferenceStub
from carousel.v1.models_pb2_grpc import ModelsStub
from carousel.v1.sessions_pb2_grpc import SessionsStub
from carousel.values import DecodingOptions, ModelInfo, SessionInfo, TargetScore

if TYPE_CHECKING:
    from carousel.v1.sessions_pb2_grpc import SessionsAsyncStub  # exists for type checkers alone

Request = TypeVar("Request")
Response = TypeVar("Response")


class AsyncClient:
    """A connection to a server, made when it is first needed. For the tasks of the event loop that it is made in.

    Close it, or use `async with`.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        channel_options: ChannelOptions = (),
    ) -> None:
        """See `Client`."""
        options = all_options(channel_options, max_message_bytes)
        self._channel = (
            grpc.aio.secure_channel(target, credentials, options)
            if credentials
            else grpc.aio.insecure_channel(target, options)
        )
        self._timeout = timeout
        self._inference = InferenceStub(self._channel)
        self._models = ModelsStub(self._channel)
        self.sessions = AsyncSessions(SessionsStub(self._channel), timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. Calls under way in other tasks raise RequestCancelledError."""
        await self._channel.close()

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
    ) -> AsyncGeneration:
        """One whole generation, in a session that lives as long as the call: see `Client.generate`."""
        request = _requests.generate_request(
            model,
            source=source,
            version=version,
            variant=variant,
            prompt=prompt,
            decoding=_requests.decoding_message(**decoding),
        )
        call = self._inference.Generate(request, timeout=self._timeout if timeout is None else timeout)
        responses = aiter(call)
        state = GenerationState()

        async def pull() -> None:
            try:
                async for response in responses:
                    state.receive_response(response)
                    if state.is_ready and not state.is_ended:
                        return
                state.stop()
            except grpc.RpcError as error:
                state.fail(_answers.rpc_error(error))
            except asyncio.CancelledError:
                if _is_cancelled():
                    raise
                state.fail(RequestCancelledError("the client was closed"))

        async def leave() -> None:
            state.leave()
            call.cancel()

        return AsyncGeneration(state, pull, leave)

    async def score(
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
        """How likely targets are, in a session that lives as long as the call: see `Client.score`."""
        request = _requests.score_request(
            model, targets, source=source, version=version, variant=variant, prompt=prompt, with_end=with_end
        )
        response = await _call(self._inference.Score, request, self._timeout if timeout is None else timeout)
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
    ) -> SessionOpening:
        """Opens a session, on a stream of its own, when it is awaited or entered: see `Client.session`."""
        request = _requests.open_message(
            model, source=source, version=version, variant=variant, first=first, top_k=top_k, logits=logits
        )
        return SessionOpening(self._inference, request, session_id, self._timeout if timeout is None else timeout)

    def batch(
        self, model: str, *, version: int = 0, variant: str = "", timeout: float | None = None
    ) -> AsyncSessionBatch:
        """Many sessions of one model on one stream, stepping together: see `Client.batch`."""
        timeout = self._timeout if timeout is None else timeout
        return AsyncSessionBatch(self._inference, model, version=version, variant=variant, timeout=timeout)

    async def models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """Every version of every model, served or not, by name and version."""
        request = models_pb2.ModelsListRequest()
        response = await _call(self._models.List, request, self._timeout if timeout is None else timeout)
        return tuple(map(_answers.model_info, response.models))

    async def model(self, name: str, version: int = 0, *, timeout: float | None = None) -> ModelInfo:
        """One version of a model; 0 means the newest that is served. Raises NotFoundError."""
        request = _requests.model_request(name, version)
        response = await _call(self._models.Get, request, self._timeout if timeout is None else timeout)
        return _answers.model_info(response.model)


class AsyncSessions:
    """The live sessions of a server, whoever opened them: `AsyncClient.sessions`. See `Sessions`."""

    def __init__(self, stub: SessionsAsyncStub, timeout: float | None) -> None:
        self._stub = stub
        self._timeout = timeout

    async def list(self, model: str | None = None, *, page_size: int = 0) -> AsyncIterator[SessionInfo]:
        """All sessions, or those of one model, in the order in which they were opened: see `Sessions.list`."""
        request: sessions_pb2.SessionsListRequest | None = _requests.sessions_request(model, page_size)
        while request is not None:
            response = await _call(self._stub.List, request, self._timeout)
            for message in response.sessions:
                yield _answers.session_info(message)
            request = _requests.next_page(request, response)

    async def get(self, session_id: str) -> SessionInfo:
        """One session. Raises NotFoundError, which tells why a session that is gone went, if that is known."""
        request = sessions_pb2.SessionsGetRequest(session_id=session_id)
        response = await _call(self._stub.Get, request, self._timeout, session_metadata(session_id))
        return _answers.session_info(response.session)

    async def close(self, session_id: str) -> int:
        """Closes a session, whoever opened it; its owner is told. Returns its last position. Raises NotFoundError."""
        request = sessions_pb2.SessionsCloseRequest(session_id=session_id)
        response = await _call(self._stub.Close, request, self._timeout, session_metadata(session_id))
        return response.position


async def _call(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    timeout: float | None,
    metadata: Metadata = (),
) -> Response:
    try:
        return await method(request, timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        raise _answers.rpc_error(error) from error
    except asyncio.CancelledError:
        if _is_cancelled():
            raise
        raise RequestCancelledError("the client was closed") from None


def _is_cancelled() -> bool:
    """Whether it is this task that was cancelled, and not the call, by the client's closing."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
