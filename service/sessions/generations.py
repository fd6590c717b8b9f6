"""What open sessions generate: generations and beam searches, which can be told again and gone on with.

A refused request changes nothing. Event loop only.
"""

from __future__ import annotations

from functools import partial

from service.engine.beam import BeamSearch
from service.engine.decoding import Beam, Decoding
from service.engine.jobs import GenerateJob, Job, SearchJob
from service.engine.results import Generated, Result, Searched
from service.sessions.admission import Admission
from service.sessions.checks import check_can_generate, check_decoding
from service.sessions.generation import Generation
from service.sessions.session import Event, Reply, Request, Session, State


class Generations:
    """Gives sessions' generations to their engines, and tells what they bring to whoever listens."""

    def __init__(self, admission: Admission) -> None:
        self.limits = admission.limits
        self._admission = admission

    def generate(
        self,
        session: Session,
        position: int | None,
        decoding: Decoding,
        *,
        request_id: int,
        reply: Reply,
        field: str,
        received: int | None = None,
    ) -> None:
        """Starts a generation. `reply` is called for every few tokens and for the end; when they have been written to
        the client, `Request.granted` is to be called. decoding: without a beam.

        One that is sent again to a session whose stream was lost is gone on with: what came after the position
        `received` is told again.

        Raises InvalidFieldError, PositionMismatchError, IllegalRequestError, QueueFullError, OutputsLostError.
        """
        request = Request(session, request_id, reply, self._admission.clock())
        last = _repeated(session, position, decoding)
        if last is not None and (last.job is not None or last.is_ended):
            self._go_on(session, last, request, received)
            return
        told = None if last is None else last.after(received)
        following = self._check_generate(session, position if last is None else None, decoding, field)
        job = GenerateJob(
            reply=self._on_generated,
            tag=request,
            start=position if last is None else session.position,
            decoding=decoding,
            window=self.limits.generation_window,
        )
        if last is not None:
            job.num_produced = job.num_granted = last.num_tokens
            job.seen = last.seen
        session.served.engine.submit(session.lane, job)
        if last is None:
            last = None if session.custody is None else Generation(position, decoding, request)
        session.last = last
        self._admission.admitted(session, following, request.began_s)
        if last is None:
            request.granted = lambda count, _: session.served.engine.grant(session.lane, job, count)
            return
        request.granted = partial(self._read, session, last)
        last.job, last.request = job, request
        if told is not None and told.token_ids:
            reply(request, told)

    def search(
        self,
        session: Session,
        position: int | None,
        decoding: Decoding,
        beam: Beam,
        *,
        request_id: int,
        reply: Reply,
        field: str,
    ) -> None:
        """Starts a beam search. `reply` is called once, when the session has consumed the best that was found. One that
        is sent again is answered again.

        Raises InvalidFieldError, PositionMismatchError, IllegalRequestError, QueueFullError.
        """
        request = Request(session, request_id, reply, self._admission.clock())
        last = _repeated(session, position, decoding)
        if last is not None:
            last.request = request
            self._admission.replayed(request, "generate")
            if last.found is not None:
                self._admission.checkpoints.tell(request, last.found)
            return
        following = self._check_generate(session, position, decoding, field)
        engine = session.served.engine
        search = BeamSearch(
            beam.beam_size,
            decoding.max_tokens,
            session.served.bundle.manifest.special_tokens.eos_id,
            stop_ids=decoding.stop_ids,
            min_tokens=decoding.min_tokens,
            length_penalty=beam.length_penalty,
            num_best=beam.num_best,
        )
        slots = engine.fork(beam.beam_size)
        job = SearchJob(reply=self._on_searched, tag=request, start=position, search=search, slots=slots)
        engine.submit(session.lane, job)
        session.last = None if session.custody is None else Generation(position, decoding, request)
        self._admission.admitted(session, following, request.began_s)

    def leave(self, session: Session) -> None:
        """No stream has the session any more: its generation is told to nobody."""
        last = session.last
        if isinstance(last, Generation):
            last.request = None
            self._go_ahead(session, last)

    def _check_generate(self, session: Session, position: int | None, decoding: Decoding, field: str) -> State:
        """Refuses a generation that cannot be next, or not so. Returns the state that follows."""
        following = session.after(Event.GENERATE)
        manifest = session.served.bundle.manifest
        check_can_generate(manifest, decoding, field)
        check_decoding(
            decoding,
            vocabulary_size=manifest.output_size,
            max_tokens=self.limits.max_generate_tokens,
            max_beam_size=self.limits.max_forks,
            field=field,
        )
        self._admission.check_turn(session, "generate.position", position)
        return following

    def _go_on(self, session: Session, last: Generation, request: Request, received: int | None) -> None:
        """Tells a generation that is there already to somebody else."""
        told = last.after(received)
        request.granted = partial(self._read, session, last)
        request.replayed = True
        self._admission.replayed(request, "generate")
        last.request = None if last.is_ended else request
        if last.is_ended:
            self._admission.checkpoints.tell(request, told)
        elif told.token_ids:
            request.reply(request, told)

    def _read(self, session: Session, generation: Generation, _: int, position: int) -> None:
        """What a generation has brought up to a position has left the server."""
        generation.num_read = max(generation.num_read, position - (generation.start or 0))
        self._grant(session, generation, generation.num_read)

    def _go_ahead(self, session: Session, generation: Generation) -> None:
        """Lets a generation that nobody listens to go on, as far as what it brings is kept."""
        if session.custody is not None and session.custody.terms.is_unattended:
            self._grant(
                session, generation, min(generation.num_tokens, generation.num_read + self.limits.replay_tokens)
            )

    @staticmethod
    def _grant(session: Session, generation: Generation, count: int) -> None:
        if generation.job is not None and count > generation.num_granted:
            session.served.engine.grant(session.lane, generation.job, count - generation.num_granted)
            generation.num_granted = count

    def _on_generated(self, job: Job, result: Result) -> None:
        request: Request = job.tag
        session = request.session
        if isinstance(result, Generated) and result.token_ids:
            self._admission.went_on(request, len(result.token_ids))
        is_ended = not isinstance(result, Generated) or result.finish_reason is not None
        if is_ended:
            self._admission.ended(session, result)
            if isinstance(result, Generated):
                self._admission.answered(request, "generate")
        else:
            session.position = result.position
            if session.custody is not None:
                self._admission.checkpoints.changed(session)
        generation = session.last
        if not isinstance(generation, Generation) or generation.job is not job:
            self._admission.checkpoints.tell(request, result)
            return
        if isinstance(result, Generated):
            generation.add(result, self.limits.replay_tokens + self.limits.generation_window)
        elif session.state is not State.CLOSED:  # one that is let go is stored as it was before this end of its work
            session.last = None
        listener = generation.request
        if is_ended:
            generation.job = generation.request = None
        if listener is not None:
            self._admission.checkpoints.tell(listener, result)
        else:
            self._go_ahead(session, generation)

    def _on_searched(self, job: Job, result: Result) -> None:
        request: Request = job.tag
        session = request.session
        self._admission.ended(session, result)
        generation = session.last if isinstance(session.last, Generation) else None
        if isinstance(result, Searched):
            best = result.hypotheses[0].tokens if result.hypotheses else []
            request.num_tokens = len(best)
            self._admission.answered(request, "generate")
            if generation is not None:
                generation.start = result.position - len(best)
                generation.tokens, generation.found = [*best], result
        elif session.state is not State.CLOSED:
            session.last = None
        listener = request if generation is None else generation.request
        if listener is not None:
            self._admission.checkpoints.tell(listener, result)


def _repeated(session: Session, position: int | None, decoding: Decoding) -> Generation | None:
    """The session's last generation, when a request is that one, sent again, and nobody else listens to it."""
    last = session.last
    if isinstance(last, Generation) and (last.request is None or last.is_ended):
        return last if last.is_repeated_by(position, decoding, session.position) else None
    return None
