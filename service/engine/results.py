"""What comes out of an engine: answers, and all that a lane is, as values of its own.

A lane is read between batches, by the side that drives the engine, and can be written into an idle lane. Knows no
session and no format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from service.engine.arena import Arena, Array
from service.engine.beam import Hypothesis
from service.engine.decoding import Decoding, FinishReason, FloatArray, FloatRow, IntArray
from service.engine.jobs import NO_TOKENS, Item, Job, Lane, Rest, StepBatchJob
from service.errors import CarouselError


class LaneState(NamedTuple):
    """Where a lane is, at a boundary between tokens.

    pending, next_logits: see `Lane`. states: one array a state tensor, of the manifest's shape without its batch axis;
    contexts: one [S, ...] array a context tensor, S the source's length. None of the arrays is to be written to.
    num_produced, seen, decoding: of the generation in hand, if one is: tokens so far, [any number] which of them the
    repetition penalty has noted, and how they are chosen; this is not known of a state out of the store.
    """

    position: int
    pending: list[Item]
    next_logits: FloatRow | None
    states: list[Array]
    contexts: list[Array]
    num_produced: int = 0
    seen: IntArray | None = None
    decoding: Decoding | None = None

    @property
    def num_bytes(self) -> int:
        """Of its arrays."""
        return sum(array.nbytes for array in (*self.states, *self.contexts))


def read_lanes(arena: Arena, lanes: Sequence[Lane]) -> list[LaneState | None]:
    """Copies lanes out. None for one that is closed, or whose feed or source is run in part: to be read later."""
    rests = [_rest(lane) for lane in lanes]
    rows = [lane.slot.row for lane, rest in zip(lanes, rests, strict=True) if rest is not None]
    copies = iter(arena.read(rows))
    found: list[LaneState | None] = []
    for lane, rest in zip(lanes, rests, strict=True):
        if rest is None:
            found.append(None)
            continue
        states, contexts = next(copies)
        pending, num_produced, seen, decoding = rest
        next_logits = None if pending else lane.next_logits
        found.append(LaneState(lane.position, pending, next_logits, states, contexts, num_produced, seen, decoding))
    return found


def write_lane(arena: Arena, lane: Lane, state: LaneState) -> None:
    """Copies a saved state into an idle lane. A generation that was in hand is not restored. Raises ValueError when the
    arrays are not of the arena's shapes."""
    arena.write(lane.slot.row, state.states, state.contexts)
    lane.position = state.position
    lane.pending = state.pending or NO_TOKENS
    lane.next_logits = state.next_logits


def _rest(lane: Lane) -> Rest | None:
    if lane.is_closed:
        return None
    return Rest(lane.pending) if lane.active is None else lane.active.rest(lane)


class StepOutput(NamedTuple):
    """What the model says comes next at `position`. logits: [V], for `OutputKind.LOGITS` and `OutputKind.VALUES` alone.
    trace: the outputs of the trace graph for the step, [units] or [source] each, by name."""

    position: int
    token_ids: list[int]
    log_probabilities: list[float] | None = None
    logits: FloatRow | None = None
    trace: dict[str, FloatRow] | None = None


class Encoded(NamedTuple):
    """Answers an `EncodeJob`."""

    position: int


class Fed(NamedTuple):
    """Answers a `FeedJob`. position: after it. mark: the lane's state after it, when it was wanted."""

    position: int
    outputs: list[StepOutput]
    mark: LaneState | None = None


class Generated(NamedTuple):
    """One of the answers to a `GenerateJob`: tokens, the end, or both. position: after it.

    log_probabilities: one for each token, when they were asked for.
    """

    position: int
    token_ids: Sequence[Item]
    log_probabilities: list[float] | None
    finish_reason: FinishReason | None


class Searched(NamedTuple):
    """Answers a `SearchJob`. position: after the first of the hypotheses, which are the best first."""

    position: int
    hypotheses: list[Hypothesis]


class Scored(NamedTuple):
    """Answers a `ScoreJob`. log_probabilities: of each target's tokens. position: where the session is, as before."""

    position: int
    log_probabilities: list[list[float]]


class Stepped(NamedTuple):
    """Answers a `StepBatchJob`: columns in the order of its lanes, N of them, 0 where one failed.

    positions: [N] after it. token_ids: [N * k] the k most likely next tokens, k = 1 unless more were asked for.
    log_probabilities: [N * k], for `OutputKind.TOP_K`. logits: [N, V], for `OutputKind.LOGITS`. errors: by place.
    """

    positions: list[int]
    token_ids: list[int]
    log_probabilities: list[float]
    logits: FloatArray | None
    errors: list[tuple[int, CarouselError]]


class Failed(NamedTuple):
    """Answers any job that was not done, or not to its end. position: where the session stands."""

    position: int
    error: CarouselError


Result = Encoded | Fed | Generated | Searched | Scored | Failed
"""Of a job of one session."""


class Produced(NamedTuple):
    """What came of commands and batches, in order. entries: a job and a result for its `reply`, or None and a function
    to call. num_ended: jobs that got their last result; num_partial: results that are not the last of their jobs;
    num_freed: forks that were freed."""

    entries: list[tuple[Job | None, Any]]
    num_ended: int
    num_partial: int
    num_freed: int


def all_failed(job: StepBatchJob, error: CarouselError) -> Stepped:
    """The answer to a step batch none of whose rows could be run."""
    size = len(job.lanes) * job.width
    errors = [(place, error) for place in range(len(job.lanes))]
    scores = [0.0] * size if job.outputs.top_k else []
    return Stepped([lane.position for lane in job.lanes], [0] * size, scores, None, errors)
