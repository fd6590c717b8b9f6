"""Feeds, scores and cancellation, and the checks that all requests of a session pass. `generations` owns generations.

A request is checked against its session and its model, becomes one job of the engine, and is answered once. A refused
request changes nothing. Event loop only; times come from the injected clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from service.engine.jobs import FeedJob, Item, OutputSpec, ScoreJob, size_of
from service.engine.results import Failed, Fed, LaneState, Result, Scored
from service.errors import (
    CarouselError,
    InvalidFieldError,
    OutputsLostError,
    RequestCancelledError,
    position_mismatch,
    too_many_in_flight,
)
from service.observer import SessionObserver
from service.sessions.answer_memory import SMALL_ANSWER, SMALL_FEED, Replays, outputs_bytes
from service.sessions.checks import check_forks, check_length, check_reads_what_it_gives, check_retries, check_score
from service.sessions.generation import Asked, LastFeed, is_refused, unlink_done
from service.sessions.lifecycle import LIVE, Event, State
from service.sessions.limits import SessionLimits
from service.sessions.not_stored import answer_not_stored
from service.sessions.persistence import PLAIN_PERSISTENCE
from service.sessions.registry import Registry
from service.sessions.request import Request
from service.sessions.session import Session
from service.sessions.unstored import UnstoredAnswers, unstored_feed, unstored_score
from service.sessions.watches import Change

_FEW = 64
"""`Replays` does not count a kept feed with at most so many tokens and top-k outputs."""


class Requests:
    """Gives feeds and scores to the engines, and cancels them."""

    def __init__(self, registry: Registry, replays: Replays, limits: SessionLimits, observer: SessionObserver) -> None:
        self.limits = limits
        self.unstored = UnstoredAnswers(limits.max_replay_bytes)
        self.observer = observer
        self.clock = registry.clock
        self.checkpoints = registry.checkpoints
        self.deferral = registry.deferral
        self.watches = registry.watches
        self._touch = registry.directory.touch
        self.replays = replays

    def check_turn(self, session: Session, field: str, position: int | None) -> None:
        """Raises when a request cannot be the next one: PositionMismatchError or QueueFullError, or
        StoreUnavailableError when the position of a strict session is not stored. While requests are in flight the
        engine checks the position, because only the engine knows where they end."""
        if session.num_in_flight == 0 and position is not None and position != session.position:
            if session.reportable_position != session.position:
                raise answer_not_stored(session)  # PositionMismatchError would report a position that is not stored
            raise position_mismatch(field, position, session.position)
        self._check_unanswered(session, session.num_unanswered)

    def _check_unanswered(self, session: Session, count: int) -> None:
        """Raises QueueFullError when a session has `count` unanswered requests and may not have one more."""
        if count >= self.limits.max_in_flight:
            raise too_many_in_flight(session.name, count, self.limits.max_in_flight)

    @staticmethod
    def admitted(session: Session, following: State) -> None:
        """Records that the engine accepted a request."""
        session.state = following
        session.num_in_flight += 1

    def request_done(self, session: Session, result: Result) -> None:
        """Records the last answer to a request in flight."""
        session.request_done(result)
        if session.state in LIVE:
            session.last_used_s = self.clock()
            if session.newer is not None:  # None: already the most recently used
                self._touch(session, session.last_used_s)
            if session.persistence is not PLAIN_PERSISTENCE:
                self.checkpoints.changed(session)

    def answered(self, request: Request, name: str, num_tokens: int = 0) -> None:
        """Reports a completed request to the observer. num_tokens: tokens that were not reported before."""
        served, trace = request.session.served, request.trace
        seconds = self.clock() - request.began_s
        self.observer.request_answered(served.model, served.version, name, seconds, num_tokens, trace=trace)
        if trace is not None:
            trace.ended(name, served.model, served.version, request.num_tokens)

    def moved(self, session: Session, name: str, num_tokens: int) -> None:
        """Reports the tokens that a request consumed before it failed or was cancelled."""
        if num_tokens > 0:
            self.observer.tokens_moved(session.served.model, session.served.version, name, num_tokens)

    def progressed(self, request: Request, num_tokens: int) -> None:
        """Reports new tokens of a generation."""
        served, now_s = request.session.served, self.clock()
        if request.num_tokens == 0:
            self.observer.first_token(served.model, served.version, now_s - request.began_s, num_tokens)
        else:
            each_s = (now_s - request.last_s) / num_tokens
            self.observer.next_tokens(served.model, served.version, each_s, num_tokens)
        request.last_s = now_s
        request.num_tokens += num_tokens

    def replayed(self, request: Request, name: str) -> None:
        """Reports a retry that is answered from memory. The retry counts as a use of the session."""
        request.replayed = True
        self._touch(request.session, self.clock())
        served = request.session.served
        self.observer.request_replayed(served.model, served.version, name)

    def feed(
        self,
        request: Request,
        position: int | None,
        tokens: Sequence[Item],
        outputs: OutputSpec,
        *,
        has_mark: bool = False,
    ) -> None:
        """Makes `request.session` consume tokens from `position` on. A retry of the last feed is answered again and not
        applied twice. `session.deferred` must be None; else the caller defers the request: see `Spill.when_live`.
        position: None skips that check. has_mark: adds a mark at the position after the feed.

        Raises InvalidFieldError, PositionMismatchError, IllegalRequestError, QueueFullError, OutputsLostError,
        StoreUnavailableError.
        """
        session, num_tokens = request.session, len(tokens)
        request.num_tokens = num_tokens
        last = session.last
        if (
            position is not None
            and isinstance(last, LastFeed)
            and last.is_repeated_by(position, tokens, outputs, has_mark=has_mark)
        ):
            if last.result is not None or not last.is_cancelled:
                self._feed_again(request, last)
                return  # else submit it: the engine refuses it if the first one was applied despite the Cancel
        elif position is not None and session.persistence.unstored:
            done = unstored_feed(session, position, tokens, outputs, has_mark=has_mark)
            if done is not None:
                self._feed_again(request, done)
                return
        served = session.served
        following = session.transition_for(Event.FEED)
        if not 0 < num_tokens <= self.limits.max_feed_tokens:
            noun = "token" if served.bundle.step_vocabulary is not None else "vector"
            check_length(num_tokens, self.limits.max_feed_tokens, field="feed", noun=noun)
        # cached per outputs, because the check takes longer than a step of a small model
        each = served.answer_bytes.get(outputs)
        num_bytes = num_tokens * served.item_bytes
        if each is None or each * num_tokens > SMALL_ANSWER or num_bytes > SMALL_FEED:
            request.reserve(num_bytes + served.check_outputs(outputs, num_tokens, self.limits.max_answer_bytes))
        waits = session.num_in_flight or session.persistence.awaiting
        if waits or (position is not None and position != session.position):
            self.check_turn(session, "feed.position", position)
        served.engine.submit(
            session.lane,
            FeedJob(reply=self._on_fed, tag=request, start=position, tokens=tokens, outputs=outputs, has_mark=has_mark),
        )
        session.last = LastFeed(request, position, tokens, outputs, last, has_mark=has_mark)
        session.state = following.state
        session.num_in_flight += 1
        served.engine.run_inline_if_lone(session.lane)

    def score(
        self, request: Request, position: int | None, targets: list[list[int]], *, with_end: bool, field: str
    ) -> None:
        """Answers with the probabilities of targets from the session's position. `session.deferred` must be None, as
        for `feed`. with_end: appends the end token to each target.

        field: the prefix of this request's fields in error messages. Raises InvalidFieldError, PositionMismatchError,
        IllegalRequestError, QueueFullError, StoreUnavailableError.
        """
        session = request.session
        check_reads_what_it_gives(session.served.bundle.manifest, field=f"{field}targets")
        check_forks(len(targets), self.limits.max_forks, field=f"{field}targets")
        for at, target in enumerate(targets):
            check_length(len(target), self.limits.max_feed_tokens, field=f"{field}targets[{at}]")
        check_length(sum(map(len, targets)), self.limits.max_feed_tokens, field=f"{field}targets")
        num_bytes = check_score(targets, max_answer_bytes=self.limits.max_answer_bytes, field=f"{field}targets")
        if with_end:
            eos_id = session.served.bundle.manifest.special_tokens.eos_id
            if eos_id is None:
                model = session.served.bundle.model
                raise InvalidFieldError(
                    f"{field}with_end must not be set: {model} has no end token", field=f"{field}with_end"
                )
            targets = [[*target, eos_id] for target in targets]
        if position is not None and (done := unstored_score(session, position, targets)) is not None:
            self.replayed(request, "score")
            self.checkpoints.deliver(request, done.result, self.unstored.of(session, done))
            return
        following = session.transition_for(Event.SCORE)
        self.check_turn(session, "score.position", position)
        request.num_tokens = sum(map(len, targets))
        request.reserve(num_bytes + request.num_tokens * session.served.item_bytes)
        engine = session.served.engine
        slots = engine.acquire_forks(len(targets))
        engine.submit(
            session.lane,
            ScoreJob(reply=self._on_scored, tag=request, start=position, targets=targets, slots=slots),
        )
        self.admitted(session, following.state)

    def cancel(self, session: Session, then: Callable[[int, int, CarouselError | None], None]) -> None:
        """Stops the session's requests in flight at a token boundary, and refuses its deferred requests. Calls
        `then(count, position, error)` when they are answered; count: their number; position: where the session is then.
        For a strict session, this position is stored then, or error is the store's. Raises QueueFullError.
        """

        def ended(num_ended: int) -> None:
            if count + num_ended:
                self.watches.changed(session, Change.CANCELLED)
            self.checkpoints.after_pending(session, partial(then, count + num_ended, session.position))
            self.deferral.run(session)

        session.check(Event.CANCEL)
        self._check_unanswered(session, session.persistence.num_awaiting)
        if isinstance(session.last, LastFeed):
            session.last.is_cancelled = True
        count = self.deferral.refuse(session, RequestCancelledError("the request was cancelled"))
        if not session.is_live:
            then(count, session.position, None)
            return
        if session.state is State.GENERATING:
            self.deferral.suspend(session)  # the next requests wait for the end of the generation
        session.served.engine.cancel(session.lane, ended)

    def _feed_again(self, request: Request, last: LastFeed) -> None:
        """Answers a retry of `last`: at once, or together with `last` when it is still in flight."""
        if last.result is None:
            assert last.request is not None  # noqa: S101  # only an answered feed has no request
            retries = last.request.retries = last.request.retries or []
            check_retries(len(retries), self.limits.max_in_flight)
            self.replayed(request, "feed")
            retries.append(request)
        elif last.is_dropped:
            raise OutputsLostError(
                f"feed.position = {last.start}: this feed was applied, but its response is no longer kept: continue"
                f" from position {last.result.position}",
                field="feed.position",
                position=last.result.position,
            )
        else:
            self._check_unanswered(request.session, request.session.num_unanswered)
            num_tokens = last.result.position - (last.start or 0)
            # another server may have applied the feed under a higher limit
            request.session.served.check_outputs(last.outputs, num_tokens, self.limits.max_answer_bytes)
            self.replayed(request, "feed")
            self.checkpoints.deliver(request, last.result, self.unstored.of(request.session, last))

    def _keep(self, feed: LastFeed, result: Result) -> None:
        """Keeps the answer of a feed for retries."""
        feed.request, feed.result = None, result
        feed.start = result.position - len(feed.tokens)
        outputs = feed.outputs
        is_small = len(feed.tokens) <= _FEW and outputs.top_k <= _FEW and not outputs.every_position
        if isinstance(result, Fed) and not (is_small and not outputs.kind.is_vector and not outputs.has_trace):
            self.replays.keep(feed, size_of(feed.tokens) + outputs_bytes(result.outputs))

    def _answered_before(self, request: Request, job: FeedJob, result: Result, before: Asked | None) -> bool:
        """Returns whether a feed that the engine refused is a retry of the feed before it, and answers it again if so.
        `feed` could not see that when a Cancel, or a request that was itself refused, came between the two."""
        if job.start is None or not isinstance(before, LastFeed) or not isinstance(before.result, Fed):
            return False
        if not before.is_repeated_by(job.start, job.tokens, job.outputs, has_mark=job.has_mark):
            return False
        for retry in (request, *(request.retries or ())):
            try:
                self._feed_again(retry, before)
            except CarouselError as error:
                self.checkpoints.deliver(retry, Failed(result.position, error))
        return True

    def _on_fed(self, job: FeedJob, result: Result) -> None:
        request: Request = job.tag
        session = request.session
        num_tokens = result.position - session.position  # tokens consumed before a failure count, too
        self.request_done(session, result)
        if not isinstance(result, Fed):
            self.moved(session, "feed", num_tokens)
        is_wrong = type(result) is Failed and is_refused(result)
        asked = unlink_done(session, request, is_refused=is_wrong)
        if is_wrong and self._answered_before(request, job, result, asked):
            return
        if isinstance(result, Fed):
            if result.mark is not None:
                result = self._marked(session, result, result.mark)
            self.answered(request, "feed", num_tokens)
        if isinstance(asked, LastFeed) and not is_wrong:
            self._keep(asked, result)
        if self.watches.of_session and num_tokens > 0:
            self.watches.fed(session, job, result, num_tokens)
        if session.persistence is PLAIN_PERSISTENCE and request.retries is None:
            request.deliver(result)
            return
        on_unstored = self.unstored.of_feed(session, job, result)
        for one in (request, *(request.retries or ())):
            self.checkpoints.deliver(one, result, on_unstored)

    def _marked(self, session: Session, result: Fed, mark: LaneState) -> Fed:
        """Keeps the mark of a result. Returns the result without it."""
        marks = session.own_persistence().marks
        marks.pop(result.position, None)
        marks[result.position] = mark
        if len(marks) > self.limits.max_marks:
            del marks[next(iter(marks))]
        return result._replace(mark=None)

    def _on_scored(self, job: ScoreJob, result: Result) -> None:
        request: Request = job.tag
        self.request_done(request.session, result)
        if isinstance(result, Scored):
            self.answered(request, "score", request.num_tokens)
        self.checkpoints.deliver(request, result, self.unstored.of_score(request.session, job, result))
