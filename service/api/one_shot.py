"""One `Inference.Generate` or `Inference.Score` call: a session that lives as long as the call."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from carousel.v1 import inference_pb2 as pb
from service.api import convert
from service.api.caller import Caller
from service.api.domain import Domain
from service.api.outbox import Outbox
from service.api.part import Part
from service.engine.decoding import Decoding
from service.engine.items import Item
from service.engine.jobs import OutputKind, OutputSpec
from service.engine.results import Failed, Generated, Result, Scored, Searched
from service.errors import CarouselError, NoSlotError, RequestCancelledError
from service.sessions.session import CloseReason, Request, Served, Session

_NOTHING = OutputSpec(OutputKind.NONE)


class OneShot:
    """The state of one call. `outbox` gets its responses, and is closed after the last. Event loop only."""

    def __init__(self, domain: Domain, caller: Caller, outbox: Outbox[pb.GenerateResponse | pb.ScoreResponse]) -> None:
        self._caller = caller
        self._registry = domain.registry
        self._dispatcher = domain.dispatcher
        self._generations = domain.generations
        self._residency = domain.residency
        self._outbox = outbox
        self._session: Session | None = None
        self._part: Part | None = None
        self._failure: CarouselError | None = None

    async def open(self, served: Served, source: Sequence[Item] | None, prompt: Sequence[Item] | None) -> Session:
        """Opens the session, waiting for a slot when another session can give its own up, and feeds it the prompt.
        Raises what the registry and the dispatcher raise."""
        while self._session is None:
            try:
                self._caller.check_room(self._registry)
                self._session = self._registry.open(
                    served,
                    self._caller.new_key(""),
                    source,
                    None,
                    request_id=0,
                    reply=self._on_step,
                    on_closed=self._on_closed,
                )
            except NoSlotError as error:
                await self._residency.make_room(served.engine, error)
        session = self._session
        if prompt is not None:
            self._dispatcher.feed(session, None, prompt, _NOTHING, request_id=0, reply=self._on_step)
        return session

    def generate(self, session: Session, decoding: Decoding) -> None:
        """Queues the generation. Raises what the dispatcher raises."""
        if decoding.beam is None:
            self._generations.generate(
                session, None, decoding, request_id=0, reply=self._on_generated, field="decoding"
            )
        else:
            self._generations.search(
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
            part = self._part = Part(request.session.served.bundle)
            self._outbox.put_later(partial(_response, request, part), partial(_granted, request, part))
        part.add(result)
        if result.finish_reason is not None:
            self._outbox.close()

    def _on_searched(self, request: Request, result: Result) -> None:
        if isinstance(result, Searched):
            generated = convert.found(result.hypotheses, request.session.served.bundle)
            version = request.session.served.bundle.version
            self._outbox.put(pb.GenerateResponse(generated=generated, position=result.position, version=version))
            self._outbox.close()
        else:
            self._on_step(request, result)

    def _on_scored(self, request: Request, result: Result) -> None:
        if isinstance(result, Scored):
            self._outbox.put(pb.ScoreResponse(scores=convert.target_scores(result.log_probabilities)))
            self._outbox.close()
        else:
            self._on_step(request, result)

    def _on_closed(self, session: Session, reason: CloseReason) -> None:
        """Somebody else has closed the session, which ends its work before its time."""
        self._fail(RequestCancelledError(f"the session was closed: {reason.value}", close_reason=reason.value))

    def _fail(self, error: CarouselError) -> None:
        if self._failure is None:
            self._failure = error
        self._outbox.close()


def _response(request: Request, part: Part) -> pb.GenerateResponse:
    version = request.session.served.bundle.version
    return pb.GenerateResponse(generated=part.take(), position=part.position, version=version)


def _granted(request: Request, part: Part) -> None:
    if request.granted is not None:
        request.granted(len(part), part.position)
