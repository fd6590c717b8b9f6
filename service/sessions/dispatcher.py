"""What open sessions do: feeds, generations, scores, cancellation.

It checks a request against its session and its model, hands the engine one job, and brings the answer back. A refused
request changes nothing. Event loop only; times come from the injected clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from service.engine.beam import BeamSearch
from service.engine.decoding import Beam, Decoding
from service.engine.jobs import FeedJob, GenerateJob, Job, OutputSpec, ScoreJob, SearchJob
from service.engine.results import Fed, Generated, Result, Scored, Searched
from service.errors import InvalidFieldError, QueueFullError, position_mismatch
from service.observer import SessionObserver
from service.sessions.checks import check_decoding, check_forks, check_length, check_outputs
from service.sessions.limits import SessionLimits
from service.sessions.live import LiveSessions
from service.sessions.session import Event, LastFeed, Reply, Request, Session, State


class Dispatcher:
    """Gives sessions' requests to their engines. clock: monotonic seconds."""

    def __init__(
        self,
        live: LiveSessions,
        limits: SessionLimits,
        observer: SessionObserver,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._live = live
        self._observer = observer
        self._clock = clock

    def feed(
        self,
        session: Session,
        position: int | None,
        tokens: list[int],
        outputs: OutputSpec,
        *,
        request_id: int,
        reply: Reply,
    ) -> None:
        """Makes a session consume tokens from `position` on. A feed sent again is answered again and not applied again.

        Raises InvalidFieldError, PositionMismatchError, IllegalRequestError, QueueFullError.
        """
        request = Request(session, request_id, reply, self._clock(), len(tokens))
        last = session.last_feed
        if position is not None and last is not None and last.is_repeated_by(position, tokens, outputs):
            request.replayed = True
            if last.result is None:
                last.waiting = [*(last.waiting or ()), request]
            else:
                reply(request, last.result)
            return
        following = session.after(Event.FEED)
        check_length(len(tokens), self.limits.max_feed_tokens, field="feed")
        check_outputs(
            outputs,
            num_tokens=len(tokens),
            vocabulary_size=session.served.bundle.manifest.target_vocabulary.size,
            max_bytes=self.limits.max_answer_bytes,
            field="feed.outputs",
        )
        self._check_turn(session, "feed.position", position)
        job = FeedJob(reply=self._on_fed, tag=request, start=position, tokens=tokens, outputs=outputs)
        session.served.engine.submit(session.lane, job)
        session.last_feed = LastFeed(request, position, tokens, outputs)
        self._admitted(session, following, request.began_s)
        session.served.engine.hasten(session.lane)

    def generate(
        self, session: Session, position: int | None, decoding: Decoding, *, request_id: int, reply: Reply, field: str
    ) -> GenerateJob:
        """Starts a generation and returns its job, for `granted`. `reply` is called for every few tokens and for the
        end. decoding: without a beam.

        Raises InvalidFieldError, PositionMismatchError, IllegalRequestError, QueueFullError.
        """
        following = self._check_generate(session, position, decoding, field)
        request = Request(session, request_id, reply, self._clock())
        job = GenerateJob(
            reply=self._on_generated,
            tag=request,
            start=position,
            decoding=decoding,
            window=self.limits.generation_window,
        )
        session.served.engine.submit(session.lane, job)
        session.last_feed = None
        self._admitted(session, following, request.began_s)
        return job

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
        """Starts a beam search. `reply` is called once, when the session has consumed the best that was found.

        Raises InvalidFieldError, PositionMismatchError, IllegalRequestError, QueueFullError.
        """
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
        request = Request(session, request_id, reply, self._clock())
        slots = engine.fork(beam.beam_size)
        job = SearchJob(reply=self._on_searched, tag=request, start=position, search=search, slots=slots)
        engine.submit(session.lane, job)
        session.last_feed = None
        self._admitted(session, following, request.began_s)

    def score(
        self,
        session: Session,
        position: int | None,
        targets: list[list[int]],
        *,
        with_end: bool,
        request_id: int,
        reply: Reply,
        field: str,
    ) -> None:
        """Tells how likely targets are from where the session is, each after itself by the end token if `with_end`.

        field: the request's, of which `targets` is one. Raises InvalidFieldError, PositionMismatchError,
        IllegalRequestError, QueueFullError.
        """
        following = session.after(Event.SCORE)
        check_forks(len(targets), self.limits.max_forks, field=f"{field}targets")
        for at, target in enumerate(targets):
            check_length(len(target), self.limits.max_feed_tokens, field=f"{field}targets[{at}]")
        check_length(sum(map(len, targets)), self.limits.max_feed_tokens, field=f"{field}targets")
        if with_end:
            eos_id = session.served.bundle.manifest.special_tokens.eos_id
            if eos_id is None:
                model = session.served.bundle.model
                raise InvalidFieldError(
                    f"{field}with_end must not be set: {model} has no end token", field=f"{field}with_end"
                )
            targets = [[*target, eos_id] for target in targets]
        self._check_turn(session, "score.position", position)
        request = Request(session, request_id, reply, self._clock(), sum(map(len, targets)))
        engine = session.served.engine
        slots = engine.fork(len(targets))
        engine.submit(
            session.lane,
            ScoreJob(reply=self._on_scored, tag=request, start=position, targets=targets, slots=slots),
        )
        self._admitted(session, following, request.began_s)

    def cancel(self, session: Session, then: Callable[[int], None]) -> None:
        """Ends the session's work in flight at a token boundary.

        `then` gets the number of requests ended, after each was answered `Failed`.
        """
        session.served.engine.cancel(session.lane, then)

    def granted(self, session: Session, job: GenerateJob, num_tokens: int) -> None:
        """Tells that `num_tokens` of a generation have been written to the client, so that it may go on."""
        session.served.engine.grant(session.lane, job, num_tokens)

    def _check_generate(self, session: Session, position: int | None, decoding: Decoding, field: str) -> State:
        """Refuses a generation that cannot be next, or not so. Returns the state that follows."""
        following = session.after(Event.GENERATE)
        check_decoding(
            decoding,
            vocabulary_size=session.served.bundle.manifest.target_vocabulary.size,
            max_tokens=self.limits.max_generate_tokens,
            max_beam_size=self.limits.max_forks,
            field=field,
        )
        self._check_turn(session, "generate.position", position)
        return following

    def _check_turn(self, session: Session, field: str, position: int | None) -> None:
        """Refuses what cannot be next. While work is in flight the engine, which knows when it ends, is the judge."""
        if session.num_in_flight == 0 and position is not None and position != session.position:
            raise position_mismatch(field, position, session.position)
        if session.num_in_flight >= self.limits.max_in_flight:
            raise QueueFullError(
                f"session {session.id!r} has {session.num_in_flight} requests in flight, the most it may have:"
                " read its answers",
                retry_delay_s=0.1,
                max_in_flight=self.limits.max_in_flight,
            )

    def _admitted(self, session: Session, following: State, now_s: float) -> None:
        session.state = following
        session.num_in_flight += 1
        self._live.touch(session, now_s)

    def _on_fed(self, job: Job, result: Result) -> None:
        request: Request = job.tag
        session = request.session
        self._ended(session, result)
        request.reply(request, result)
        if isinstance(result, Fed):
            self._answered(request, "feed")
        last = session.last_feed
        if last is not None and last.request is request:
            last.result = result
            last.start = result.position - len(last.tokens)
            for repeat in last.waiting or ():
                repeat.reply(repeat, result)
            last.waiting = None

    def _on_generated(self, job: Job, result: Result) -> None:
        request: Request = job.tag
        if isinstance(result, Generated) and result.token_ids:
            if request.num_tokens == 0:
                bundle = request.session.served.bundle
                self._observer.first_token(bundle.model, bundle.version, self._clock() - request.began_s)
            request.num_tokens += len(result.token_ids)
        if isinstance(result, Generated) and result.finish_reason is None:
            request.session.position = result.position
        else:
            self._ended(request.session, result)
            if isinstance(result, Generated):
                self._answered(request, "generate")
        request.reply(request, result)

    def _on_searched(self, job: Job, result: Result) -> None:
        request: Request = job.tag
        self._ended(request.session, result)
        if isinstance(result, Searched):
            request.num_tokens = len(result.hypotheses[0].tokens) if result.hypotheses else 0
            self._answered(request, "generate")
        request.reply(request, result)

    def _on_scored(self, job: Job, result: Result) -> None:
        request: Request = job.tag
        self._ended(request.session, result)
        if isinstance(result, Scored):
            self._answered(request, "score")
        request.reply(request, result)

    def _ended(self, session: Session, result: Result) -> None:
        session.ended(result)
        if session.state is not State.CLOSED:
            self._live.touch(session, self._clock())

    def _answered(self, request: Request, name: str) -> None:
        bundle = request.session.served.bundle
        seconds = self._clock() - request.began_s
        self._observer.request_answered(bundle.model, bundle.version, name, seconds, request.num_tokens)
