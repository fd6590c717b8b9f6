"""Step batches: one request makes many sessions consume tokens, and gets one answer.

A session that cannot take part is reported in the answer, and the others take part. Event loop only; times come from
the injected clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from service.engine.jobs import Lane, OutputSpec, StepBatchJob
from service.engine.results import Stepped
from service.errors import CarouselError, InvalidFieldError, PositionMismatchError, too_many_in_flight
from service.observer import CALL_TRACE, SessionObserver
from service.sessions.answer_memory import Replays
from service.sessions.checks import check_batch, check_outputs
from service.sessions.generation import NotRetryable, unlink_done
from service.sessions.kinds import check_kind
from service.sessions.lifecycle import LIVE, Event, State
from service.sessions.limits import SessionLimits
from service.sessions.persistence import PLAIN_PERSISTENCE
from service.sessions.registry import Registry
from service.sessions.session import Session
from service.sessions.step_columns import StepBatch, check_columns, select, several_frames, spread
from service.sessions.unstored import UnstoredAnswers

_TOKEN_BYTES = 9
"""The most bytes of a token in an answer's columns: its id and its log-probability."""

_READY = frozenset({State.IDLE, State.BUSY})
"""The states in which a session takes part without a look-up in the table."""

Reply = Callable[["StepBatchRequest", Stepped], None]


class StepBatchRequest:
    """One step batch, from its arrival to its answer.

    sessions: those that take part, at `places` of the batch. refused: by place, why the others do not. positions: the
    reportable positions of the refused sessions, by place. began_s: arrival, in monotonic seconds. result: the answer
    once it is known, without errors of the store. eras: the era after the batch, for sessions with their own
    persistence.
    """

    __slots__ = (
        "began_s",
        "eras",
        "places",
        "positions",
        "refused",
        "reply",
        "result",
        "sessions",
        "trace",
    )

    def __init__(
        self,
        sessions: list[Session],
        places: Sequence[int],
        refused: dict[int, CarouselError],
        *,
        reply: Reply,
        began_s: float,
    ) -> None:
        self.sessions = sessions
        self.places = places
        self.refused = refused
        self.positions: dict[int, int] = {}
        self.reply = reply
        self.began_s = began_s
        self.result: Stepped | None = None
        self.eras: dict[Session, int] = {}
        call = CALL_TRACE.get()
        self.trace = None if call is None else call.request()

    @property
    def is_refused(self) -> bool:
        """Whether the batch was refused for each of its sessions, and so changed nothing."""
        if self.result is None:
            return False
        wrong = (place for place, error in self.result.errors if isinstance(error, PositionMismatchError))
        return len(self.refused) + sum(place not in self.refused for place in wrong) == len(self.result.positions)

    @property
    def is_done(self) -> bool:
        """Whether all its sessions have consumed their tokens and were not rewound since. A retry can then be answered
        again, wherever the sessions are now."""
        return self.result is not None and all(
            not session.is_over
            and session.position >= self.result.positions[place]
            and session.persistence.era == self.eras.get(session, 0)
            for place, session in zip(self.places, self.sessions, strict=True)
        )

    @property
    def is_current(self) -> bool:
        """Whether all its sessions are where the batch left them, so that a retry can be answered again. True while the
        batch runs."""
        if self.result is None:
            return True
        return all(
            not session.is_over
            and session.num_in_flight == 0
            and session.position == self.result.positions[place]
            and session.persistence.era == self.eras.get(session, 0)
            for place, session in zip(self.places, self.sessions, strict=True)
        )


class StepBatches:
    """Gives step batches to their engines."""

    def __init__(
        self,
        registry: Registry,
        replays: Replays,
        limits: SessionLimits,
        observer: SessionObserver,
        unstored: UnstoredAnswers,
    ) -> None:
        self.replays = replays
        self._limits = limits
        self.unstored = unstored
        self._observer = observer
        self._checkpoints = registry.checkpoints
        self._clock = registry.clock
        self._touch = registry.directory.touch
        self._mark_s = limits.mark_s
        self._watches = registry.watches

    def step(self, batch: StepBatch, reply: Reply, reserve: Callable[[int], None]) -> StepBatchRequest:
        """Makes the sessions of a batch consume its tokens. reply(request, stepped) is called once on the event loop,
        maybe before this returns. reserve(num_bytes) counts the memory of the answer. Raises InvalidFieldError and its
        subclasses for a batch that is wrong as a whole, and QueueFullError."""
        check_columns(batch, self._limits.max_feed_tokens)
        num_sessions, limit = len(batch.sessions), self._limits.max_answer_bytes
        reserve(check_batch(num_sessions, max_answer_bytes=limit, field="step_batch.handles"))
        tokens, counts, positions = batch.tokens, batch.counts, batch.positions
        refused = self._refused(batch)
        places: Sequence[int] = range(num_sessions)
        lanes = batch.lanes
        if refused or lanes is None:
            places = [place for place in places if place not in refused]
            tokens, counts, positions = select(places, tokens, counts, positions)
            lanes = None
        sessions = [session for session in map(batch.sessions.__getitem__, places) if session is not None]
        request = StepBatchRequest(sessions, places, refused, reply=reply, began_s=self._clock())
        for place in refused:
            session = batch.sessions[place]
            request.positions[place] = 0 if session is None else session.reportable_position
        if not sessions:
            self._answer(request, self._spread(request, Stepped([], [], [], None, []), batch.outputs))
            return request
        served = sessions[0].served
        if lanes is None:
            lanes = lanes_of(sessions)
        manifest = served.bundle.manifest
        check_kind(manifest, served.variant, batch.outputs, field="step_batch.outputs")
        if counts is not None and manifest.step.emits is not None and max(counts) > 1:
            raise several_frames(manifest.model)
        each = check_outputs(
            batch.outputs._replace(every_position=True),  # one output for each session
            num_tokens=num_sessions,
            vocabulary_size=manifest.output_size,
            max_bytes=limit,
            field="step_batch.outputs",
            token_bytes=_TOKEN_BYTES,
        )
        reserve(each * num_sessions)
        job = StepBatchJob(
            reply=self._on_stepped,
            tag=request,
            lanes=lanes,
            starts=positions,
            tokens=tokens,
            counts=counts,
            outputs=batch.outputs,
        )
        served.engine.submit_step_batch(job)
        for session in sessions:
            session.state = State.BUSY
            session.num_in_flight += 1
            if session.last is not None:
                session.last = NotRetryable(request, session.last)
        return request

    def answer_again(self, request: StepBatchRequest, reply: Reply) -> None:
        """Answers a retry of a batch that was answered and whose sessions are where it left them. Raises
        QueueFullError."""
        assert request.result is not None  # noqa: S101  # the caller checks this
        for session in request.eras:
            if session.num_unanswered >= self._limits.max_in_flight:
                raise too_many_in_flight(session.name, session.num_unanswered, self._limits.max_in_flight)
        self.replayed(request)
        now_s = self._clock()
        for session in request.sessions:
            if not session.is_over:
                self._touch(session, now_s)
        self._answer(request, request.result, reply)

    def replayed(self, request: StepBatchRequest) -> None:
        """Reports a retry that is answered from memory, or together with the batch."""
        if request.sessions:
            served = request.sessions[0].served
            self._observer.request_replayed(served.model, served.version, "step_batch")

    def _refused(self, batch: StepBatch) -> dict[int, CarouselError]:
        """Returns why some sessions cannot take part, by place."""
        refused = dict(batch.refused)
        limit = self._limits.max_in_flight
        for place, session in enumerate(batch.sessions):
            if session is None or place in refused:
                continue
            count = session.num_in_flight
            if session.persistence.awaiting:
                count = session.num_unanswered
            if count >= limit or session.state not in _READY:
                try:
                    following = session.transition_for(Event.STEP_BATCH)
                    assert following.state in LIVE  # noqa: S101  # the caller defers sessions without a slot
                    refused[place] = too_many_in_flight(session.name, count, limit)
                except CarouselError as error:
                    refused[place] = error
        return refused

    def _on_stepped(self, job: StepBatchJob, stepped: Stepped) -> None:
        request: StepBatchRequest = job.tag
        now_s = self._clock()
        stale_s = now_s - self._mark_s
        num_tokens = 0
        if self._watches.of_session:
            self._watches.stepped(request.sessions, job, stepped)
        wrong = {at for at, error in stepped.errors if isinstance(error, PositionMismatchError)}
        for at, (session, position) in enumerate(zip(request.sessions, stepped.positions, strict=True)):
            session.num_in_flight -= 1
            if session.last is not None:
                unlink_done(session, request, is_refused=at in wrong)
            before = session.position
            if position > before:
                num_tokens += position - before
                session.position = position
            if not session.num_in_flight and session.state in LIVE:
                session.state = State.IDLE
                if session.last_used_s < stale_s:
                    self._touch(session, now_s)
            if session.persistence is not PLAIN_PERSISTENCE:
                request.eras[session] = session.persistence.era
                self._checkpoints.changed(session)
        served, trace = request.sessions[0].served, request.trace
        self._observer.request_answered(
            served.model, served.version, "step_batch", now_s - request.began_s, num_tokens, trace=trace
        )
        if trace is not None:
            trace.ended("step_batch", served.model, served.version, num_tokens)
        self._answer(request, self._spread(request, stepped, job.outputs))

    @staticmethod
    def _spread(request: StepBatchRequest, stepped: Stepped, outputs: OutputSpec) -> Stepped:
        return spread(
            stepped,
            outputs,
            places=request.places,
            refused=request.refused,
            refused_positions=request.positions,
        )

    def _answer(self, request: StepBatchRequest, result: Stepped, reply: Reply | None = None) -> None:
        """Answers a batch when all its strict sessions are stored. A session that cannot be stored is reported with
        this one error, which replaces its other error."""
        request.result = result
        reply = reply or request.reply
        strict: list[tuple[int, Session]] = []
        if request.eras:
            strict = [
                (place, session)
                for place, session in zip(request.places, request.sessions, strict=True)
                if session.persistence.waits_for_store and not session.is_over
            ]
        if not strict:
            reply(request, result)
            return
        num_left = len(strict)
        errors, positions = dict(result.errors), list(result.positions)

        def stored(place: int, session: Session, error: CarouselError | None) -> None:
            nonlocal num_left
            num_left -= 1
            if error is not None:
                errors[place] = error
                positions[place] = session.reportable_position
            if not num_left:
                reply(request, result._replace(errors=sorted(errors.items()), positions=positions))

        for place, session in strict:
            moment = (request.eras[session], result.positions[place])
            self._checkpoints.when_stored(session, moment, partial(stored, place, session))


def lanes_of(sessions: list[Session]) -> list[Lane]:
    """Returns the lanes of sessions. Raises InvalidFieldError when the sessions do not all use the same engine."""
    engine = sessions[0].served.engine
    if any(session.served.engine is not engine for session in sessions):
        raise InvalidFieldError(
            "step_batch.handles has sessions of more than one model, version or variant: send a step batch for each",
            field="step_batch.handles",
        )
    return [session.lane for session in sessions]
