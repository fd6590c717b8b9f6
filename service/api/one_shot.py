"""One `Inference.Generate` or `Inference.Score` call: a session that lives as long as the call."""

from __future__ import annotations

from functools import partial

from carousel.v1 import inference_pb2 as pb
from service.api import convert
from service.api.domain import Domain
from service.api.outbox import Outbox
from service.api.part import Part
from service.engine.decoding import Decoding
from service.engine.jobs import GenerateJob, OutputKind, OutputSpec
from service.engine.results import Failed, Generated, Result, Scored, Searched
from service.errors import CarouselError, RequestCancelledError
from service.sessions.session import CloseReason, Request, Served, Session

_NOTHING = OutputSpec(OutputKind.NONE)


class OneShot:
    """The state of one call. `outbox` gets its responses, and is closed after the last. Event loop only."""

    def __init__(self, domain: Domain, outbox: Outbox[pb.GenerateResponse | pb.ScoreResponse]) -> None:
        self._registry = domain.registry
        self._dispatcher = domain.dispatcher
        self._outbox = outbox
        self._session: Session | None = None
        self._job: GenerateJob | None = None
        self._part: Part | None = None
        self._failure: CarouselError | None = None

    def open(self, served: Served, source: list[int] | None, prompt: list[int] | None) -> Session:
        """Opens the session and feeds it the prompt. Raises what the registry and the dispatcher raise."""
        session = self._session = self._registry.open(
            served, "", source, None, request_id=0, reply=self._on_step, on_closed=self._on_closed
        )
        if prompt is not None:
            self._dispatcher.feed(session, None, prompt, _NOTHING, request_id=0, reply=self._on_step)
        return session

    def generate(self, session: Session, decoding: Decoding) -> None:
        """Queues the generation. Raises what the dispatcher raises."""
        if decoding.beam is None:
            self._job = self._dispatcher.generate(
                session, None, decoding, request_id=0, reply=self._on_generated, field="decoding"
            )
        else:
            self._dispatcher.search(
                session, None, decoding, decoding.beam, request_id=0, reply=self._on_searched, field="decoding"
            )

    def score(self, session: Session, targets: list[list[int]], *, with_end: bool) -> None:
        """Queues the score. Raises what the dispatcher raises."""
        self._dispatcher.score(session, None, targets, with_end=with_end, request_id=0, reply=self._on_scored, field="")

    def raise_failure(self) -> None:
        """Raises the error that ended the work, if one did."""
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Closes the session, whether or not it has done its work."""
        if self._session is not None:
            self._registry.close(self._session, CloseReason.CLIENT, notify=False)

    def _on_step(self, request: Request, result: Result) -> None:
        if isinstance(result, Failed):
            self._fail(result.error)

    def _on_generated(self, request: Request, result: Result) -> None:
        if not isinstance(result, Generated):
            self._on_step(request, result)
            return
        part = self._part
        if part is None or part.is_taken:
            part = self._part = Part(request.session.served.bundle.target_vocabulary)
            self._outbox.put_later(partial(self._response, part), partial(self._granted, request.session, part))
        part.add(result)
        if result.finish_reason is not None:
            self._outbox.close()

    def _on_searched(self, request: Request, result: Result) -> None:
        if isinstance(result, Searched):
            names = request.session.served.bundle.target_vocabulary.names
            generated = convert.found(result.hypotheses, names)
            self._outbox.put(pb.GenerateResponse(generated=generated, position=result.position))
            self._outbox.close()
        else:
            self._on_step(request, result)

    def _on_scored(self, request: Request, result: Result) -> None:
        if isinstance(result, Scored):
            self._outbox.put(pb.ScoreResponse(scores=convert.target_scores(result.log_probabilities)))
            self._outbox.close()
        else:
            self._on_step(request, result)

    def _response(self, part: Part) -> pb.GenerateResponse:
        return pb.GenerateResponse(generated=part.take(), position=part.position)

    def _granted(self, session: Session, part: Part) -> None:
        if self._job is not None:
            self._dispatcher.granted(session, self._job, len(part))

    def _on_closed(self, session: Session, reason: CloseReason) -> None:
        """Somebody else has closed the session, which ends its work before its time."""
        self._fail(RequestCancelledError(f"the session was closed: {reason.value}", close_reason=reason.value))

    def _fail(self, error: CarouselError) -> None:
        if self._failure is None:
            self._failure = error
        self._outbox.close()
