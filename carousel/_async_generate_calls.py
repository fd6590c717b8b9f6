"""`AsyncClient.generate`, `AsyncClient.forecast` and `AsyncClient.score`."""

# ruff: noqa: ASYNC109 - the same `timeout` as in the blocking client

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Unpack

from carousel import _answers, _requests
from carousel._async_call import AsyncResponses
from carousel._async_retry import retried
from carousel._async_turn import AsyncTurn
from carousel._backoff import CallBackoff
from carousel._constants import Constants
from carousel._deadline import Deadline
from carousel._decoding import decoding_message
from carousel._generation import GenerationState
from carousel._home import Unpicklable
from carousel._requests import Source
from carousel._tensors import Features, Vector
from carousel.async_session import AsyncGeneration
from carousel.decoding_options import DecodingOptions
from carousel.errors import CarouselError
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc
from carousel.values import TargetScore


class AsyncGenerateCalls(Unpicklable):
    """Generations and scores, each in one call with its own session."""

    _inference: inference_pb2_grpc.InferenceAsyncStub
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
        """Runs one generation, in a session that ends with the call. It starts at once.

        source: text, token names, token ids or feature vectors; for models with an encoder.
        version: 0 for the newest.
        variant: how the model is computed, such as `int8`; empty for `fp32`.
        prompt: target tokens to consume first.
        constants: see `session`.
        decoding: see `DecodingOptions`.
        resume_timeout: how many seconds to retry after a lost connection, or when the server shuts down, until new
            tokens arrive. A retry generates all tokens again with the same version of the model, and the client drops
            those that had arrived before.
        timeout: seconds for the whole generation; default the client's.

        A model that outputs values yields `ValueToken`s. The iterator raises NotFoundError for an unknown model,
        InvalidArgumentError, ResourceExhaustedError, DeadlineExceededError, UnavailableError.
        """
        request = _requests.generate_request(
            model,
            source=source,
            version=version,
            variant=variant,
            prompt=prompt,
            constants=constants,
            decoding=decoding_message("generate", **decoding),
        )
        deadline = Deadline(self._timeout if timeout is None else timeout)

        def start() -> AsyncResponses[pb.GenerateResponse]:
            return AsyncResponses(partial(self._inference.Generate, request, timeout=deadline.remaining()))

        state, backoff, turn = GenerationState(request.decoding), CallBackoff(resume_timeout), AsyncTurn("generation")
        responses = start()  # after `CallBackoff` has checked its argument

        async def pull() -> None:
            with turn:
                await pull_alone()

        async def pull_alone() -> None:
            nonlocal responses
            while True:
                try:
                    while (response := await responses.next()) is not None:
                        state.receive_response(response)
                        if state.is_ready and not state.is_ended:
                            return
                    state.stop()
                    return
                except CarouselError as error:
                    try:
                        delay_s = backoff.next(error, state.position, time.monotonic(), deadline.remaining())
                    except CarouselError as last:
                        state.fail(last)
                        return
                await asyncio.sleep(delay_s)
                request.version = state.version or request.version
                responses = start()

        async def leave() -> None:
            state.leave()
            if turn.is_here:
                responses.cancel()

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
        """Returns the next values of a model that outputs values, in a session that ends with the call.

        horizon: steps. source: vectors, for models with an encoder. features: vectors for the steps to consume first.
        version, variant, constants, timeout: as in `generate`. Raises the errors of the iterator of `generate`,
        and TypeError for a model that generates tokens.
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
        """Returns how likely each target is, in a session that ends with the call.

        targets: a list of sequences; each is text, token names or token ids. source, version, variant, prompt,
        constants: as in `generate`. with_end: also score the end token after each target. resume_timeout: how many
        seconds to retry after a lost connection. timeout: seconds; default the client's.

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
        deadline = Deadline(self._timeout if timeout is None else timeout)
        response = await retried(self._inference.Score, request, deadline, resume_timeout)
        return _answers.target_scores(response.scores)
