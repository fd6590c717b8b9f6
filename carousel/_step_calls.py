"""`Client.step`."""

from __future__ import annotations

from typing import Unpack

from carousel import _arguments, _step
from carousel._channel import session_metadata
from carousel._deadline import Deadline
from carousel._requests import Tokens
from carousel._unary import retried, unary
from carousel.steps import SessionStep, StepOptions
from carousel.v1.inference_pb2_grpc import InferenceStub


class StepCalls:
    """Sessions by calls of one request and one answer."""

    _inference: InferenceStub
    _timeout: float | None

    def step(
        self,
        session_id: str = "",
        tokens: Tokens | None = None,
        *,
        resume_timeout: float = 60.0,
        timeout: float | None = None,
        **options: Unpack[StepOptions],
    ) -> SessionStep:
        """One call of a session, without a stream: opens it or goes on with it, feeds it and closes it, each as far as
        it is asked. Between the calls the server holds it, as `on_disconnect` said when it was opened.

        session_id: of a session that no stream has; empty, with a model, to have one made. tokens: as in
        `Session.feed`; None feeds nothing. options: see `StepOptions`. A call that feeds nothing, or whose feed has a
        `position`, is sent again when its connection is lost or its server shuts down, for up to `resume_timeout`
        seconds; it is applied once. You may send it again yourself, too. timeout: seconds; default the client's.

        Raises NotFoundError for a session that is not there, whose metadata tells how it ended; FailedPreconditionError
        for one that a stream has; PositionMismatchError, which tells where the session is; AlreadyExistsError for one
        of another model; and what `Client.session` and `Session.feed` raise. Threads may call it at once: calls of one
        session are carried out one after the other.
        """
        message = _step.request(session_id, tokens, **options)
        own, metadata = self._timeout if timeout is None else timeout, session_metadata(message.session_id)
        resume_timeout = _arguments.seconds(resume_timeout, "resume_timeout")
        if not _step.is_repeatable(message):
            return _step.value(unary(self._inference.Step, message, own, metadata))
        return _step.value(retried(self._inference.Step, message, Deadline(own), resume_timeout, metadata))
