"""One `Inference.Generate` or `Inference.Score` call: its session lives as long as the call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from carousel.v1 import inference_pb2 as pb
from service.api import convert
from service.api.caller import Caller, Domain
from service.api.hypotheses import hypotheses_found
from service.api.outbox import Outbox
from service.api.part import Part, pieces
from service.api.text import text_after
from service.engine.decoding import Decoding
from service.engine.jobs import Item, OutputKind, OutputSpec
from service.engine.results import Failed, Generated, Result, Scored, Searched
from service.errors import CarouselError, RequestCancelledError, SessionMovedError, ShuttingDownError
from service.observer import current_call
from service.sessions.constants import Given
from service.sessions.deferral import Deferred
from service.sessions.request import Reply, Request
from service.sessions.served import Served
from service.sessions.session import CloseReason, Session

_NOTHING = OutputSpec(OutputKind.NONE)


class OneShot:
    """The state of one call. `outbox` gets its responses, and is closed after the last one. Event loop only."""

    def __init__(self, domain: Domain, caller: Caller, outbox: Outbox[pb.GenerateResponse | pb.ScoreResponse]) -> None:
        self._report = current_call()
        self._caller = caller
        self._sessions = domain.sessions
        self._outbox = outbox
        self._session: Session | None = None
        self._part: Part | None = None
        self._failure: CarouselError | None = None

    def open(
        self,
        served: Served,
        source: Sequence[Item] | None,
        prompt: Sequence[Item] | None,
        num_bytes: int = 0,
        given: Given = None,
    ) -> Session:
        """Opens the session and feeds it the prompt, both as soon as a slot is free.

        num_bytes: the bytes of the call's request, which is kept until then; given: the session constants.

        Raises a subclass of CarouselError if the session cannot be opened.
        """
        principal = self._caller.principal
        self._report.num_tokens_in += len(source or ()) + len(prompt or ())
        new = self._sessions.opening.prepare(
            served,
            self._caller.new_key(""),
            source,
            None,
            request=self._request(self._on_step),
            on_ended=self._on_ended,
            is_chosen=False,
            max_owned=principal.max_sessions,
            num_bytes=num_bytes,
            given=given,
        )
        session = self._session = new.session
        self._sessions.opening.begin(new)
        if prompt is not None:
            feed = self._request(self._on_step, session)
            self._when_live(session, lambda: self._sessions.requests.feed(feed, None, prompt, _NOTHING))
        return session

    def generate(self, session: Session, decoding: Decoding) -> None:
        """Queues the generation. Raises a subclass of CarouselError if it is refused."""
        if decoding.beam is None:
            request = self._request(self._on_generated, session)
            self._when_live(
                session, lambda: self._sessions.generations.generate(request, None, decoding, field="decoding")
            )
            return
        beam, search = decoding.beam, self._request(self._on_searched, session)
        self._when_live(
            session, lambda: self._sessions.generations.search(search, None, decoding, beam, field="decoding")
        )

    def score(self, session: Session, targets: list[list[int]], *, with_end: bool) -> None:
        """Queues the score. Raises a subclass of CarouselError if it is refused."""
        request = self._request(self._on_scored, session)
        self._report.num_tokens_in += sum(map(len, targets))
        self._when_live(
            session,
            lambda: self._sessions.requests.score(request, None, targets, with_end=with_end, field=""),
        )

    def raise_failure(self) -> None:
        """Raises the error that ended the call's work, if there is one."""
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Closes the session, whether its work is done or not."""
        if self._session is not None:
            self._sessions.registry.close(self._session, CloseReason.CLIENT, notify=False)

    def _request(self, reply: Reply, session: Session | None = None) -> Request:
        return Request(session, 0, reply, time.monotonic())

    def _when_live(self, session: Session, act: Callable[[], None]) -> None:
        """Calls `act` as soon as the session has its slot: at once if it has one."""
        if session.deferred is None:
            act()
            return

        def run(failures: object) -> None:
            try:
                act()
            except CarouselError as error:
                self._fail(error)

        self._sessions.spill.when_live(Deferred([session], run, self._fail))

    def _on_step(self, request: Request, result: Result) -> None:
        if isinstance(result, Failed):
            self._fail(result.error)

    def _on_generated(self, request: Request, result: Result) -> None:
        if not isinstance(result, Generated):
            self._on_step(request, result)
            return
        bundle, max_bytes = request.session.served.bundle, self._sessions.limits.max_answer_bytes
        self._report.num_tokens_out += len(result.token_ids)
        for piece in pieces(result, bundle, max_bytes):
            part = self._part
            if part is None or part.is_taken or part.room < len(piece.token_ids):
                self._report.num_messages_out += 1
                text = text_after(piece.before, bundle) if part is None else part.text
                part = self._part = Part(bundle, max_bytes, text)
                self._outbox.put_later(partial(_response, request, part), partial(_granted, request, part))
            part.add(piece)
        if result.finish_reason is not None:
            self._outbox.close()

    def _on_searched(self, request: Request, result: Result) -> None:
        if isinstance(result, Searched):
            self._report.num_messages_out += 1
            self._report.num_tokens_out += request.num_tokens
            self._outbox.put_later(partial(_found, request, result), lambda: None)
            self._outbox.close()
        else:
            self._on_step(request, result)

    def _on_scored(self, request: Request, result: Result) -> None:
        if isinstance(result, Scored):
            self._outbox.put(pb.ScoreResponse(scores=convert.target_scores(result.log_probabilities)))
            self._outbox.close()
        else:
            self._on_step(request, result)

    def _on_ended(self, session: Session, reason: CloseReason) -> None:
        """Fails the call because something else ended its session early."""
        if reason is CloseReason.SHUTDOWN:
            self._fail(
                ShuttingDownError("the server is shutting down: send the call to another server", retry_delay_s=1.0)
            )
        elif reason in (CloseReason.LOST, CloseReason.MOVED):
            self._fail(SessionMovedError(f"the session of the call ended ({reason.value}): send the call again"))
        else:
            self._fail(
                RequestCancelledError(f"the session of the call was closed ({reason.value})", close_reason=reason.value)
            )

    def _fail(self, error: CarouselError) -> None:
        if self._failure is None:
            self._failure = error
        self._outbox.close()


async def _found(request: Request, result: Searched) -> pb.GenerateResponse:
    bundle = request.session.served.bundle
    generated = await hypotheses_found(result, bundle)
    return pb.GenerateResponse(generated=generated, position=result.position, version=bundle.version)


def _response(request: Request, part: Part) -> pb.GenerateResponse:
    version = request.session.served.bundle.version
    return pb.GenerateResponse(generated=part.take(), position=part.position, version=version)


def _granted(request: Request, part: Part) -> None:
    if request.granted is not None:
        request.granted(len(part), part.position)
