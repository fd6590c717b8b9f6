"""What open sessions consume: feeds and scores, and their cancellation. What they generate is `generations`'.

It checks a request against its session and its model, hands the engine one job, and brings the answer back. A refused
request changes nothing. Event loop only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from service.engine.items import Item
from service.engine.jobs import FeedJob, Job, OutputSpec, ScoreJob
from service.engine.lane_state import LaneState
from service.engine.results import Fed, Result, Scored
from service.errors import InvalidFieldError
from service.sessions.admission import Admission
from service.sessions.checks import (
    check_forks,
    check_kind,
    check_length,
    check_outputs,
    check_reads_what_it_gives,
    trace_size,
)
from service.sessions.custody import Custody
from service.sessions.session import Event, LastFeed, Reply, Request, Session
from service.sessions.terms import PLAIN


class Dispatcher:
    """Gives sessions' feeds and scores to their engines."""

    def __init__(self, admission: Admission) -> None:
        self.limits = admission.limits
        self._admission = admission

    def feed(
        self,
        session: Session,
        position: int | None,
        tokens: Sequence[Item],
        outputs: OutputSpec,
        *,
        request_id: int,
        reply: Reply,
        has_mark: bool = False,
    ) -> None:
        """Makes a session consume tokens from `position` on. A feed sent again is answered again and not applied again.
        has_mark: the session is kept as it is after it.

        Raises InvalidFieldError, PositionMismatchError, IllegalRequestError, QueueFullError.
        """
        request = Request(session, request_id, reply, self._admission.clock(), len(tokens))
        last = session.last
        if position is not None and isinstance(last, LastFeed) and last.is_repeated_by(position, tokens, outputs):
            request.replayed = True
            self._admission.replayed(request, "feed")
            if last.result is None:
                last.waiting = [*(last.waiting or ()), request]
            else:
                self._admission.checkpoints.tell(request, last.result)
            return
        following = session.after(Event.FEED)
        check_length(len(tokens), self.limits.max_feed_tokens, field="feed")
        manifest = session.served.bundle.manifest
        check_kind(manifest, session.served.variant, outputs, field="feed.outputs")
        check_outputs(
            outputs,
            num_tokens=len(tokens),
            vocabulary_size=manifest.output_size,
            max_bytes=self.limits.max_answer_bytes,
            field="feed.outputs",
            trace_size=trace_size(manifest) if outputs.has_trace else 0,
        )
        self._admission.check_turn(session, "feed.position", position)
        job = FeedJob(reply=self._on_fed, tag=request, start=position, tokens=tokens, outputs=outputs)
        job.has_mark = has_mark
        session.served.engine.submit(session.lane, job)
        session.last = LastFeed(request, position, tokens, outputs)
        self._admission.admitted(session, following, request.began_s)
        session.served.engine.run_inline_if_lone(session.lane)

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
        check_reads_what_it_gives(session.served.bundle.manifest, field=f"{field}targets")
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
        self._admission.check_turn(session, "score.position", position)
        request = Request(session, request_id, reply, self._admission.clock(), sum(map(len, targets)))
        engine = session.served.engine
        slots = engine.fork(len(targets))
        engine.submit(
            session.lane,
            ScoreJob(reply=self._on_scored, tag=request, start=position, targets=targets, slots=slots),
        )
        self._admission.admitted(session, following, request.began_s)

    def cancel(self, session: Session, then: Callable[[int], None]) -> None:
        """Ends the session's work in flight at a token boundary.

        `then` gets the number of requests ended, after each was answered `Failed`.
        """
        checkpoints = self._admission.checkpoints
        session.served.engine.cancel(session.lane, lambda count: checkpoints.in_turn(session, partial(then, count)))

    def _on_fed(self, job: Job, result: Result) -> None:
        request: Request = job.tag
        session = request.session
        self._admission.ended(session, result)
        if isinstance(result, Fed):
            if result.mark is not None:
                result = self._marked(session, result, result.mark)
            self._admission.answered(request, "feed")
        last = session.last
        if isinstance(last, LastFeed) and last.request is request:
            last.result = result
            last.start = result.position - len(last.tokens)
        self._admission.checkpoints.tell(request, result)
        if isinstance(last, LastFeed) and last.request is request:
            for repeat in last.waiting or ():
                self._admission.checkpoints.tell(repeat, result)
            last.waiting = None

    def _marked(self, session: Session, result: Fed, mark: LaneState) -> Fed:
        """Keeps a mark, and the result without it."""
        if session.custody is None:
            session.custody = Custody(PLAIN)
        marks = session.custody.marks
        marks.pop(result.position, None)
        marks[result.position] = mark
        if len(marks) > self.limits.max_marks:
            del marks[next(iter(marks))]
        return result._replace(mark=None)

    def _on_scored(self, job: Job, result: Result) -> None:
        request: Request = job.tag
        self._admission.ended(request.session, result)
        if isinstance(result, Scored):
            self._admission.answered(request, "score")
        request.reply(request, result)
