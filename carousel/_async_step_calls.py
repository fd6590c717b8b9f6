"""`AsyncClient.step`."""

# ruff: noqa: ASYNC109 - the same `timeout` as in the blocking client

from __future__ import annotations

from typing import Unpack

from carousel import _arguments, _step
from carousel._async_call import unary
from carousel._async_retry import retried
from carousel._channel import session_metadata
from carousel._deadline import Deadline
from carousel._requests import Tokens
from carousel.steps import SessionStep, StepOptions
from carousel.v1 import inference_pb2_grpc


class AsyncStepCalls:
    """The call that uses a session without a stream."""

    _inference: inference_pb2_grpc.InferenceAsyncStub
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
        """Opens, resumes, feeds or closes a session in one call, without a stream. Between calls the server keeps the
        session, as `on_disconnect` said at the opening.

        session_id: a session without a stream; empty, together with a model, to open a new one. tokens: as in
        `AsyncSession.feed`; None feeds nothing. options: see `StepOptions`. timeout: seconds; default the client's.
        resume_timeout: how many seconds to retry after a lost connection, or when the server shuts down. The client
        retries a call that feeds nothing, or whose feed has a `position`: the server applies it once. You may repeat
        such a call too. A retry of a call that closed the session raises NotFoundError, with the position at which the
        session was closed, only where the server no longer has its answer, as after the server's restart.

        Raises NotFoundError for a session that does not exist, whose metadata says how it ended;
        FailedPreconditionError for a session with a stream; PositionMismatchError, which has the session's position;
        AlreadyExistsError if the session has another model; and the errors of `AsyncClient.session` and
        `AsyncSession.feed`. Several tasks may call it at the same time: the server runs the calls of one session one
        after the other.
        """
        message = _step.request(session_id, tokens, **options)
        own, metadata = self._timeout if timeout is None else timeout, session_metadata(message.session_id)
        resume_timeout = _arguments.seconds(resume_timeout, "resume_timeout")
        if not _step.is_repeatable(message):
            return _step.value(await unary(self._inference.Step, message, own, metadata))
        return _step.value(await retried(self._inference.Step, message, Deadline(own), resume_timeout, metadata))
