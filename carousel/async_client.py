"""The asyncio client: `carousel.client` with awaits."""

# ruff: noqa: ASYNC109 - the same `timeout` as in the blocking client; it also covers the wait for a turn

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

import grpc

from carousel import _answers, _requests
from carousel._async_model_calls import AsyncModelCalls
from carousel._async_step_calls import AsyncStepCalls
from carousel._async_unary import is_cancelled, retried
from carousel._backoff import CallBackoff
from carousel._channel import MAX_MESSAGE_BYTES, ChannelOptions, all_credentials, all_options
from carousel._constants import Constants
from carousel._deadline import Deadline
from carousel._decoding import decoding_message
from carousel._generation import GenerationState
from carousel._protocol import SessionProtocol
from carousel._recovery import Recovery
from carousel._requests import Source
from carousel._tensors import Features, Vector
from carousel.async_batch import AsyncSessionBatch
from carousel.async_session import AsyncGeneration, SessionOpening
from carousel.async_sessions import AsyncSessions
from carousel.async_watch import AsyncWatchCalls
from carousel.errors import CarouselError
from carousel.v1 import inference_pb2 as pb
from carousel.v1.inference_pb2_grpc import InferenceStub
from carousel.v1.models_pb2_grpc import ModelsStub
from carousel.v1.sessions_pb2_grpc import SessionsStub
from carousel.values import DecodingOptions, TargetScore


class AsyncClient(AsyncModelCalls, AsyncStepCalls, AsyncWatchCalls):
    """A connection to a server, made when it is first needed. For the tasks of the event loop that it is made in.

    Close it, or use `async with`.
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
        constants: Constants | None = None,
        resume_timeout: float = 60.0,
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
            constants=constants,
            decoding=decoding_message(**decoding),
        )
        deadline = Deadline(self._timeout if timeout is None else timeout)
        call = self._inference.Generate(request, timeout=deadline.remaining())
        responses = aiter(call)
        state, backoff = GenerationState(request.decoding), CallBackoff(resume_timeout)

        async def pull() -> None:
            nonlocal call, responses
            while True:
                try:
                    async for response in responses:
                        state.receive_response(response)
                        if state.is_ready and not state.is_ended:
                            return
                    state.stop()
                    return
                except asyncio.CancelledError:
                    if is_cancelled():
                        raise
                    state.fail(_answers.client_closed())
                    return
                except grpc.RpcError as error:
                    failure, now_s = _answers.rpc_error(error), time.monotonic()
                    try:
                        delay_s = backoff.next(failure, state.position, now_s, deadline.remaining())
                    except CarouselError as last:
                        state.fail(last)
                        return
                await asyncio.sleep(delay_s)
                request.version = state.version or request.version
                call = self._inference.Generate(request, timeout=deadline.remaining())
                responses = aiter(call)

        async def leave() -> None:
            state.leave()
            call.cancel()

        return AsyncGeneration(state, pull, leave)

    async def forecast(
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
        """Returns the next values of a model that gives values: see `Client.forecast`."""
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
        return await generation.vectors()

    async def score(
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
        """Returns how likely targets are, in a session that lives as long as the call: see `Client.score`."""
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
        deadline = Deadline(self._timeout if timeout is None else timeout)
        response = await retried(self._inference.Score, request, deadline, resume_timeout)
        return _answers.target_scores(response.scores)

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
        """Opens a session, on a stream of its own, when it is awaited or entered: see `Client.session`."""
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
            )  # to be resumed, the session needs an id that is known from the start
        protocol = SessionProtocol(session_id, recovery)
        return SessionOpening(
            self._inference, request, protocol, self._timeout if timeout is None else timeout, self.sessions
        )

    def resume(self, session_id: str, *, resume_timeout: float = 60.0, timeout: float | None = None) -> SessionOpening:
        """Resumes a session that was opened elsewhere: see `Client.resume`."""
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
