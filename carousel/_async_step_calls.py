"""`AsyncClient.step`."""

# ruff: noqa: ASYNC109 - the same `timeout` as in the blocking client

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from carousel import _arguments, _step
from carousel._async_unary import retried, unary
from carousel._channel import session_metadata
from carousel._deadline import Deadline
from carousel._requests import Tokens
from carousel.steps import SessionStep, StepOptions

if TYPE_CHECKING:
    from carousel.v1.inference_pb2_grpc import InferenceAsyncStub  # exists only for type checkers


class AsyncStepCalls:
    """The call that uses a session without a stream."""

    _inference: InferenceAsyncStub
    _timeout: float | None

    async def step(
        self,
        session_id: str = "",
        tokens: Tokens | None = None,
        *,
        resume_timeout: float = 60.0,
        timeout: float | None = None,
        **options: Unpack[StepOptions],
    ) -> SessionStep:
        """Opens, feeds or closes a session in one call, without a stream: see `Client.step`."""
        message = _step.request(session_id, tokens, **options)
        own, metadata = self._timeout if timeout is None else timeout, session_metadata(message.session_id)
        resume_timeout = _arguments.seconds(resume_timeout, "resume_timeout")
        if not _step.is_repeatable(message):
            return _step.value(await unary(self._inference.Step, message, own, metadata))
        return _step.value(await retried(self._inference.Step, message, Deadline(own), resume_timeout, metadata))
