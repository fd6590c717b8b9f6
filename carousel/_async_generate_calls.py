"""`AsyncClient.generate`, `AsyncClient.forecast` and `AsyncClient.score`."""

# ruff: noqa: ASYNC109 - the same `timeout` as in the blocking client

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import grpc

from carousel import _answers, _requests
from carousel._async_unary import is_cancelled, retried
from carousel._backoff import CallBackoff
from carousel._constants import Constants
from carousel._deadline import Deadline
from carousel._decoding import decoding_message
from carousel._generation import GenerationState
from carousel._home import Home, Unpicklable
from carousel._requests import Source
from carousel._tensors import Features, Vector
from carousel.async_session import AsyncGeneration
from carousel.errors import CarouselError
from carousel.values import DecodingOptions, TargetScore

if TYPE_CHECKING:
    from carousel.v1.inference_pb2_grpc import InferenceAsyncStub  # exists for type checkers alone


class AsyncGenerateCalls(Unpicklable):
    """Generations and scores, each in one call with its own session."""

    _inference: InferenceAsyncStub
    _timeout: float | None

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
        """Runs one generation, in a session that ends with the call: see `Client.generate`."""
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
        state, backoff, home = GenerationState(request.decoding), CallBackoff(resume_timeout), Home("generation")

        async def pull() -> None:
            nonlocal call, responses
            home.check()
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
            if home.is_here:
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
        """Returns the next values of a model that outputs values: see `Client.forecast`."""
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
        """Returns how likely each target is, in a session that ends with the call: see `Client.score`."""
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
