"""Frames: many sessions that consume tokens by one request, and are answered by one.

A session that cannot take part is told of in the answer, and the others go on. Event loop only; times come from the
injected clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from service.engine.items import Item
from service.engine.jobs import Lane, OutputKind, OutputSpec, StepBatchJob
from service.engine.results import Stepped
from service.errors import CarouselError, InvalidFieldError, QueueFullError
from service.observer import CALL_TRACE, SessionObserver
from service.sessions.checkpoints import Checkpoints
from service.sessions.checks import check_kind, check_length, check_outputs
from service.sessions.limits import SessionLimits
from service.sessions.live import LiveSessions
from service.sessions.session import Event, Session, State
from service.sessions.terms import Durability

_TOUCHES = 64
"""How many times within its idle timeout a session is marked as used, at most: a mark costs as much as a step."""


class Frame(NamedTuple):
    """What is asked. All columns have the order of the sessions.

    sessions: N of them, each once, or None; refused: why some cannot take part, by place, as the caller knows;
    tokens: one session's after the other's, `counts[i]` each, or one; positions: where they begin, or None: wherever
    the sessions are; outputs: what to return after the last token of each; lanes: of the sessions, when it is known
    that all are there and have one engine.
    """

    sessions: list[Session | None]
    refused: dict[int, CarouselError]
    tokens: Sequence[Item]
    counts: list[int] | None
    positions: list[int] | None
    outputs: OutputSpec
    lanes: list[Lane] | None = None


class FrameRequest:
    """One frame on its way. reply(request, stepped) is called on the event loop, once.

    sessions: those that take part, at `places` of the frame; refused: why the others do not, by place; positions: where
    these stand, as far as they are known. began_s: monotonic seconds when it was read.
    """

    __slots__ = ("began_s", "num_tokens", "places", "positions", "refused", "reply", "request_id", "sessions", "trace")

    def __init__(
        self,
        sessions: list[Session],
        places: Sequence[int],
        refused: dict[int, CarouselError],
        *,
        request_id: int,
        reply: Callable[[FrameRequest, Stepped], None],
    ) -> None:
        self.sessions = sessions
        self.places = places
        self.refused = refused
        self.positions: dict[int, int] = {}
        self.request_id = request_id
        self.reply = reply
        self.began_s = 0.0
        self.num_tokens = 0
        call = CALL_TRACE.get()
        self.trace = None if call is None else call.request()


class Frames:
    """Gives frames to their engine. clock: monotonic seconds."""

    def __init__(
        self,
        live: LiveSessions,
        limits: SessionLimits,
        observer: SessionObserver,
        checkpoints: Checkpoints,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live = live
        self._limits = limits
        self._observer = observer
        self._checkpoints = checkpoints
        self._clock = clock
        self._touch_s = limits.idle_timeout_s / _TOUCHES

    def step(self, frame: Frame, *, request_id: int, reply: Callable[[FrameRequest, Stepped], None]) -> None:
        """Makes the sessions of a frame consume its tokens. Raises InvalidFieldError and its kin for what is wrong with
        the frame itself, and QueueFullError."""
        self._check_shape(frame)
        tokens, counts, positions = frame.tokens, frame.counts, frame.positions
        refused = frame.refused | self._refused(frame.sessions)
        places: Sequence[int] = range(len(frame.sessions))
        lanes = frame.lanes
        if refused or lanes is None:
            places = [place for place in places if place not in refused]
            tokens, counts, positions = _select(places, tokens, counts, positions)
            lanes = None
        sessions = [session for session in map(frame.sessions.__getitem__, places) if session is not None]
        request = FrameRequest(sessions, places, refused, request_id=request_id, reply=reply)
        request.began_s = self._clock()
        request.num_tokens = len(tokens)
        for place in refused:
            session = frame.sessions[place]
            request.positions[place] = 0 if session is None else session.position
        if not sessions:
            reply(request, _spread(request, Stepped([], [], [], None, []), frame.outputs))
            return
        served = sessions[0].served
        if lanes is None:
            lanes = lanes_of(sessions)
        manifest = served.bundle.manifest
        check_kind(manifest, served.variant, frame.outputs, field="step_batch.outputs")
        check_outputs(
            frame.outputs._replace(every_position=True),  # one for each session
            num_tokens=len(places),
            vocabulary_size=manifest.output_size,
            max_bytes=self._limits.max_answer_bytes,
            field="step_batch.outputs",
        )
        job = StepBatchJob(
            reply=self._on_stepped,
            tag=request,
            lanes=lanes,
            starts=positions,
            tokens=tokens,
            counts=counts,
            outputs=frame.outputs,
        )
        served.engine.submit_step_batch(job)
        for session in sessions:
            session.state = State.BUSY
            session.num_in_flight += 1
            session.last = None

    def _check_shape(self, frame: Frame) -> None:
        size, counts = len(frame.sessions), frame.counts
        check_length(size, self._limits.max_feed_tokens, field="step_batch.handles")
        check_length(len(frame.tokens), self._limits.max_feed_tokens, field="step_batch.token_ids")
        for name, column in (("counts", counts), ("positions", frame.positions)):
            if column is not None and len(column) != size:
                raise InvalidFieldError(
                    f"step_batch.{name} has {len(column)} entries, step_batch.handles {size}",
                    field=f"step_batch.{name}",
                )
        if counts is not None and min(counts) < 1:
            at = next(at for at, count in enumerate(counts) if count < 1)
            raise InvalidFieldError(
                f"step_batch.counts[{at}] = {counts[at]} must be 1 or more", field=f"step_batch.counts[{at}]"
            )
        expected = size if counts is None else sum(counts)
        if len(frame.tokens) != expected:
            told = "step_batch.handles has" if counts is None else "step_batch.counts add up to"
            raise InvalidFieldError(
                f"step_batch.token_ids has {len(frame.tokens)} entries, {told} {expected}", field="step_batch.token_ids"
            )
        if frame.outputs.has_trace:
            raise InvalidFieldError(
                "step_batch.outputs.trace must not be set: only a feed looks inside", field="step_batch.outputs.trace"
            )
        if frame.outputs.every_position:
            raise InvalidFieldError(
                "step_batch.outputs.every_position must not be set: a frame returns one output a session",
                field="step_batch.outputs.every_position",
            )

    def _refused(self, found: list[Session | None]) -> dict[int, CarouselError]:
        """Why some of the sessions cannot take part, by place."""
        refused: dict[int, CarouselError] = {}
        limit = self._limits.max_in_flight
        for place, session in enumerate(found):
            if session is not None and (session.num_in_flight >= limit or session.state is State.GENERATING):
                try:
                    session.after(Event.FEED)
                    refused[place] = QueueFullError(
                        f"session {session.name!r} has {session.num_in_flight} requests in flight, the most it may"
                        " have: read its answers",
                        retry_delay_s=0.1,
                        max_in_flight=limit,
                    )
                except CarouselError as error:
                    refused[place] = error
        return refused

    def _on_stepped(self, job: StepBatchJob, stepped: Stepped) -> None:
        request: FrameRequest = job.tag
        now_s = self._clock()
        stale_s = now_s - self._touch_s
        strict: list[Session] = []
        for session, position in zip(request.sessions, stepped.positions, strict=True):
            session.num_in_flight -= 1
            if position > session.position:  # noqa: PLR1730  # a call would cost as much as all the rest
                session.position = position
            if not session.num_in_flight and session.state is not State.CLOSED:
                session.state = State.IDLE
                if session.last_used_s < stale_s:
                    self._live.touch(session, now_s)
            if session.custody is not None:
                self._checkpoints.changed(session)
                if session.custody.terms.durability is Durability.STRICT:
                    strict.append(session)
        bundle = request.sessions[0].served.bundle
        self._observer.request_answered(
            bundle.model, bundle.version, "step_batch", now_s - request.began_s, request.num_tokens, trace=request.trace
        )
        answer = _spread(request, stepped, job.outputs)
        if strict:
            self._tell_when_stored(request, answer, strict)
        else:
            request.reply(request, answer)

    def _tell_when_stored(self, request: FrameRequest, answer: Stepped, strict: list[Session]) -> None:
        """Answers a frame when all of its strict sessions are stored; those that cannot be are refused in it."""
        place_of = dict(zip(map(id, request.sessions), request.places, strict=True))
        num_left = len(strict)

        def stored(session: Session, error: CarouselError | None) -> None:
            nonlocal num_left
            num_left -= 1
            if error is not None:
                answer.errors.append((place_of[id(session)], error))
            if not num_left:
                answer.errors.sort(key=lambda one: one[0])
                request.reply(request, answer)

        for session in strict:
            self._checkpoints.when_stored(session, session.position, partial(stored, session))


def lanes_of(sessions: list[Session]) -> list[Lane]:
    """Raises InvalidFieldError when the sessions have not all the same engine."""
    engine = sessions[0].served.engine
    if any(session.served.engine is not engine for session in sessions):
        raise InvalidFieldError(
            "step_batch.handles are of sessions of more than one model, version or variant: send a frame for each",
            field="step_batch.handles",
        )
    return [session.lane for session in sessions]


def _select(
    places: Sequence[int], tokens: Sequence[Item], counts: list[int] | None, positions: list[int] | None
) -> tuple[Sequence[Item], list[int] | None, list[int] | None]:
    """Some places' columns of a frame."""
    if counts is None:
        tokens = [tokens[place] for place in places]
    else:
        ends = list(accumulate(counts, initial=0))
        tokens = [token for place in places for token in tokens[ends[place] : ends[place + 1]]]
        counts = [counts[place] for place in places]
    return tokens, counts, None if positions is None else [positions[place] for place in places]


def _spread(request: FrameRequest, stepped: Stepped, outputs: OutputSpec) -> Stepped:
    """The answer with the places of those that were refused: where they stand, and 0 in each other column."""
    if not request.refused:
        return stepped
    size, places = len(request.places) + len(request.refused), list(request.places)
    width = {OutputKind.NEXT_TOKEN: 1, OutputKind.TOP_K: outputs.top_k}.get(outputs.kind, 0)

    def column(values: list[Any], width: int) -> list[Any]:
        if not values:
            return [0] * (size * width)
        whole = np.zeros((size, width), np.array(values[:1]).dtype)
        whole[places] = np.array(values).reshape(-1, width)
        spread: list[Any] = whole.ravel().tolist()
        return spread

    logits = None
    if stepped.logits is not None:
        logits = np.zeros((size, stepped.logits.shape[-1]), np.float32)
        logits[places] = stepped.logits
    positions = column(stepped.positions, 1)
    for place, position in request.positions.items():
        positions[place] = position
    errors = [*((places[place], error) for place, error in stepped.errors), *request.refused.items()]
    return Stepped(
        positions,
        column(stepped.token_ids, width),
        column(stepped.log_probabilities, width) if outputs.kind is OutputKind.TOP_K else [],
        logits,
        sorted(errors, key=lambda one: one[0]),
    )
