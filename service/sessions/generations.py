"""Generations and beam searches of sessions. A retry continues a generation from the position that its client has
received.

A refused request changes nothing. Event loop only.
"""

from __future__ import annotations

from functools import partial

from service.engine.beam import BeamSearch
from service.engine.decoding import Beam, Decoding
from service.engine.jobs import ITEM_SIZE, GenerateJob, SearchJob, size_of
from service.engine.results import Failed, Generated, Result, Searched
from service.errors import CarouselError, OutputsLostError
from service.sessions.checks import check_answer, check_can_generate, check_decoding
from service.sessions.generation import Generation, NotRetryable, is_refused, unlink_done
from service.sessions.lifecycle import Event, State
from service.sessions.persistence import PLAIN_PERSISTENCE
from service.sessions.request import Request
from service.sessions.requests import Requests
from service.sessions.session import Session
from service.sessions.unstored import unstored_generation


class Generations:
    """Gives generations to the engines, and delivers their tokens to the listening requests."""

    def __init__(self, requests: Requests) -> None:
        self.limits = requests.limits
        self._requests = requests
        self._checkpoints = requests.checkpoints
        self._unstored = requests.unstored
        self._watches = requests.watches

    def generate(
        self, request: Request, position: int | None, decoding: Decoding, *, field: str, received: int | None = None
    ) -> None:
        """Starts a generation of `request.session`. It is answered after every few tokens, and at the end. The caller
        calls `Request.granted` when answers were written to the client. `session.deferred` must be None, as for
        `Requests.feed`. decoding: without a beam.

        A retry, after the session lost its stream, continues the generation: the tokens after the position `received`
        are delivered again. When the server does not know the generation any more, it makes the generation again and
        delivers it from there.

        Raises InvalidFieldError, PositionMismatchError, IllegalRequestError, QueueFullError, OutputsLostError,
        StoreUnavailableError.
        """
        session = request.session
        last = _repeated(session, position, decoding)
        if last is not None and (last.job is not None or last.is_ended):
            self._continue(session, last, request, received)
            return
        missed = None if last is None else last.after(received)
        following = self._check_generate(request, position if last is None else None, decoding, field)
        engine = session.served.engine
        job = GenerateJob(
            reply=self._on_generated,
            tag=request,
            start=position if last is None else session.position,
            decoding=decoding,
            window=self.limits.generation_window,
            seen=None if last is None else last.seen,
            num_produced=0 if last is None else last.num_tokens,
            num_granted=0 if last is None else last.num_tokens,
        )
        engine.submit(session.lane, job)
        if last is not None:
            session.last = last
        elif session.persistence is not PLAIN_PERSISTENCE or received is not None:
            session.last = last = Generation(position, decoding, request, session.last)
            last.received_position = received
        else:
            session.last = NotRetryable(request, session.last)
        self._requests.admitted(session, following)
        if last is None:
            request.granted = lambda count, _: engine.grant(session.lane, job, count)
            return
        request.granted = partial(self._read, session, last)
        last.job, last.request = job, request
        if missed is not None and missed.token_ids:
            self._checkpoints.deliver(request, missed)

    def search(self, request: Request, position: int | None, decoding: Decoding, beam: Beam, *, field: str) -> None:
        """Starts a beam search of `request.session`. It is answered once, after the session has consumed the best
        result. A retry is answered again. `session.deferred` must be None, as for `Requests.feed`.

        Raises InvalidFieldError, PositionMismatchError, IllegalRequestError, QueueFullError, OutputsLostError,
        StoreUnavailableError.
        """
        session = request.session
        last = _repeated(session, position, decoding)
        if last is not None:
            self._check_size(session, decoding, field)
            self._requests.replayed(request, "generate")
            if last.is_dropped:
                raise OutputsLostError(
                    f"generate.position = {position}: this search is complete, but its results are no longer kept:"
                    f" continue from position {last.position}",
                    field="generate.position",
                    position=last.position,
                )
            if last.found is not None:
                self._checkpoints.deliver(request, last.found, self._unstored.of(session, last))
            else:
                last.request = request
            return
        following = self._check_generate(request, position, decoding, field)
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
        slots = engine.acquire_forks(beam.beam_size)
        job = SearchJob(reply=self._on_searched, tag=request, start=position, search=search, slots=slots)
        engine.submit(session.lane, job)
        is_kept = session.persistence is not PLAIN_PERSISTENCE
        former = session.last
        session.last = Generation(position, decoding, request, former) if is_kept else NotRetryable(request, former)
        self._requests.admitted(session, following)

    def leave(self, session: Session) -> None:
        """Removes the listener of a session's generation, because its stream ended."""
        last = session.last
        if isinstance(last, Generation):
            last.request = None
            self._run_unattended(session, last)

    def _check_generate(self, request: Request, position: int | None, decoding: Decoding, field: str) -> State:
        """Raises when a generation cannot be the next request, or its decoding is wrong. Returns the state that
        follows."""
        session = request.session
        following = session.transition_for(Event.GENERATE).state
        check_can_generate(session.served.bundle.manifest, decoding, field)
        num_bytes = self._check_size(session, decoding, field)
        self._requests.check_turn(session, "generate.position", position)
        request.reserve(num_bytes)
        return following

    def _check_size(self, session: Session, decoding: Decoding, field: str) -> int:
        """As `check_decoding`. Also checks that one vector fits into an answer."""
        bundle = session.served.bundle
        if bundle.target_vocabulary is None:
            num_bytes = ITEM_SIZE * bundle.manifest.output_size
            check_answer(num_bytes, self.limits.max_answer_bytes, field="generate", advice="raise max_message_bytes")
        return check_decoding(
            decoding,
            vocabulary_size=bundle.manifest.output_size,
            max_tokens=self.limits.max_generate_tokens,
            max_beam_size=self.limits.max_forks,
            field=field,
            max_answer_bytes=self.limits.max_answer_bytes,
            token_bytes=bundle.max_token_bytes,
        )

    def _continue(self, session: Session, last: Generation, request: Request, received: int | None) -> None:
        """Delivers an existing generation to another request."""
        missed = last.after(received)
        request.before = missed.before
        last.received_position = None
        request.granted = partial(self._read, session, last)
        self._requests.replayed(request, "generate")
        last.request = None if last.is_ended else request
        if received is not None:  # may be more than the former stream knew
            self._read(session, last, 0, received)
        if last.is_ended or missed.token_ids:
            self._checkpoints.deliver(request, missed, self._unstored.of(session, last))

    def _read(self, session: Session, generation: Generation, _: int, position: int) -> None:
        """Records that the tokens up to a position were written to the client."""
        generation.num_read = max(generation.num_read, position - (generation.start or 0))
        self._grant(session, generation, generation.num_read)

    def _without_listener(self, session: Session, generation: Generation) -> None:
        """Handles tokens without a listener: an earlier answer could not be stored, or the stream has ended."""
        self._run_unattended(session, generation)
        on_unstored = self._unstored.of(session, generation)
        if generation.is_ended and on_unstored is not None:
            on_unstored()

    def _run_unattended(self, session: Session, generation: Generation) -> None:
        """Lets a generation without a listener continue, as long as its tokens can be kept."""
        if session.policy.is_unattended:
            self._grant(
                session, generation, min(generation.num_tokens, generation.num_read + self.limits.replay_tokens)
            )

    @staticmethod
    def _grant(session: Session, generation: Generation, count: int) -> None:
        if generation.job is not None and count > generation.num_granted:
            session.served.engine.grant(session.lane, generation.job, count - generation.num_granted)
            generation.num_granted = count

    def _on_generated(self, job: GenerateJob, result: Result) -> None:
        request: Request = job.tag
        session = request.session
        if isinstance(result, Generated) and result.token_ids:
            self._requests.progressed(request, len(result.token_ids))
        is_ended = not isinstance(result, Generated) or result.finish_reason is not None
        if is_refused(result):
            self._refused(job, request, result)
            return
        if is_ended:
            self._ended(request, result)
        else:
            session.position = result.position
            if session.persistence is not PLAIN_PERSISTENCE:
                self._checkpoints.changed(session)
        self._watches.generated(session, result)
        generation = session.last
        if not isinstance(generation, Generation) or generation.job is not job:
            self._checkpoints.deliver(request, result)
            return
        if isinstance(result, Generated):
            generation.add(result, self.limits.replay_tokens + self.limits.generation_window)
        elif not session.is_over:  # a session handed over is stored as before its work stopped
            session.last = None
        listener = generation.request
        if is_ended:
            generation.former = None
            generation.job = generation.request = None
        if listener is None:
            self._without_listener(session, generation)
        elif generation.received_position is None or not isinstance(result, Generated):
            self._checkpoints.deliver(listener, result, self._unstored.of(session, generation))
        else:
            self._deliver_rest(session, generation, listener, result)

    def _refused(self, job: GenerateJob, request: Request, result: Result) -> None:
        """Handles that the engine refused a generation because of its position. When the request repeats the one before
        it, which a refused request had hidden, it is answered again."""
        session = request.session
        self._requests.request_done(session, result)
        refused, received, listener = session.last, None, request
        if isinstance(refused, Generation) and refused.job is job:
            session.last, received = refused.former, refused.received_position
            listener = refused.request
        else:
            unlink_done(session, request, is_refused=True)
        if listener is None:
            return
        try:
            if _repeated(session, job.start, job.decoding) is not None:
                self.generate(listener, job.start, job.decoding, field="generate.decoding", received=received)
                return
        except CarouselError as error:
            result = Failed(result.position, error)
        self._checkpoints.deliver(listener, result)

    def _ended(self, request: Request, result: Result) -> None:
        self._requests.request_done(request.session, result)
        unlink_done(request.session, request, is_refused=False)
        if isinstance(result, Generated):
            self._requests.answered(request, "generate")

    def _deliver_rest(self, session: Session, generation: Generation, listener: Request, result: Generated) -> None:
        """Delivers the part that the client does not have of a generation that is made again."""
        received = generation.received_position
        if received is not None and received < result.position:
            generation.received_position = None
            result = generation.after(max(received, generation.start or 0))
        elif result.finish_reason is None:
            self._read(session, generation, len(result.token_ids), result.position)
            return
        else:
            result = Generated(result.position, [], None, result.finish_reason)
        self._checkpoints.deliver(listener, result, self._unstored.of(session, generation))

    def _on_searched(self, job: SearchJob, result: Result) -> None:
        request: Request = job.tag
        session = request.session
        num_tokens = result.position - session.position
        self._requests.request_done(session, result)
        if self._watches.of_session:
            self._watches.searched(session, job, result, num_tokens)
        generation = session.last if isinstance(session.last, Generation) else None
        if generation is None:
            unlink_done(session, request, is_refused=is_refused(result))
        if isinstance(result, Searched):
            best = result.hypotheses[0].tokens if result.hypotheses else []
            request.num_tokens = len(best)
            self._requests.answered(request, "generate", num_tokens)
            if generation is not None:
                generation.start = result.position - len(best)
                generation.tokens, generation.found, generation.before = [*best], result, result.before
                num_bytes = size_of(best) + sum(2 * size_of(one.tokens) for one in result.hypotheses)
                self._requests.replays.keep(generation, num_bytes)
        else:
            self._requests.moved(session, "generate", num_tokens)
            if generation is not None and not session.is_over:
                session.last = generation.former if is_refused(result) else None
                again = _repeated(session, generation.start, generation.decoding)
                if again is not None and again.found is not None and generation.request is not None:
                    result = again.found
        listener = request if generation is None else generation.request
        if generation is not None:
            generation.request = generation.former = None
        if listener is not None:
            on_unstored = None if generation is None else self._unstored.of(session, generation)
            self._checkpoints.deliver(listener, result, on_unstored)


def _repeated(session: Session, position: int | None, decoding: Decoding) -> Generation | None:
    """Returns the generation that a request retries: the session's last, if it has no listener, or one that ended and
    whose answer the store did not take."""
    last = session.last
    if (
        isinstance(last, Generation)
        and (last.request is None or last.is_ended)
        and last.is_repeated_by(position, decoding, session.position)
    ):
        return last
    return None if position is None else unstored_generation(session, position, decoding)
