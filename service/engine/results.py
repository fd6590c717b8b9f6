"""What comes out: of a run of a graph, by row of the batch and by token in it; of an engine, the answers; and all that
a lane is, as values of its own.

Heads of the graph give a value where the graph has them, and logits where it has not, whatever else was fetched: what
a session gets does not depend on what its neighbours asked for. Shapes: `B` rows, `T` tokens, `V` vocabulary, `K` the
most that a row asked for.

A lane is read between batches, by the side that drives the engine, and can be written into an idle lane. Knows no
session and no format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from service.engine.arena import Arena, Array
from service.engine.beam import Hypothesis
from service.engine.before import Before
from service.engine.decoding import Decoding, FinishReason, FloatArray, FloatRow, IntArray, log_softmax, top_k
from service.engine.emitted import emitted
from service.engine.jobs import NO_TOKENS, Item, Items, Job, Lane, OutputKind, OutputSpec, Rest, StepBatchJob
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
    trace: the outputs of the trace graph for the step, [units] or [source] each, by name. num_limited: encoded frames
    that had as many tokens as they may, for `OutputKind.EMITTED`."""

    position: int
    token_ids: list[int]
    log_probabilities: list[float] | None = None
    logits: FloatRow | None = None
    trace: dict[str, FloatRow] | None = None
    num_limited: int = 0


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

    log_probabilities: one for each token, when they were asked for. before: in the first answer, of models that keep
    their last tokens.
    """

    position: int
    token_ids: Sequence[Item]
    log_probabilities: list[float] | None
    finish_reason: FinishReason | None
    before: Before | None = None


class Searched(NamedTuple):
    """Answers a `SearchJob`. position: after the first of the hypotheses, which are the best first. before: as that of
    `Generated`."""

    position: int
    hypotheses: list[Hypothesis]
    before: Before | None = None


class Scored(NamedTuple):
    """Answers a `ScoreJob`. log_probabilities: of each target's tokens. position: where the session is, as before."""

    position: int
    log_probabilities: list[list[float]]


class Stepped(NamedTuple):
    """Answers a `StepBatchJob`: columns in the order of its lanes, N of them, 0 where one failed.

    positions: [N] after it. token_ids: [N * k] the k most likely next tokens, k = 1 unless more were asked for.
    log_probabilities: [N * k], for `OutputKind.TOP_K`. logits: [N, V], for `OutputKind.LOGITS`, and values for
    `OutputKind.VALUES` and `OutputKind.EMITTED`. errors: by place.
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


class FetchSpec(NamedTuple):
    """What to fetch of a run beside the likeliest token. logits: of every token; top_k: the most that a row asks for,
    0: none; trace: the trace graph's outputs, too. has_choices: whether a row chooses its token in another way than by
    taking the likeliest."""

    logits: bool = False
    top_k: int = 0
    trace: bool = False
    has_choices: bool = False

    def __or__(self, other: FetchSpec) -> FetchSpec:
        """What two rows need together."""
        return FetchSpec(
            self.logits or other.logits,
            max(self.top_k, other.top_k),
            self.trace or other.trace,
            self.has_choices or other.has_choices,
        )


NEXT_TOKEN = FetchSpec()
"""Nothing but the likeliest token. Compared by identity where every row is asked."""
LOGITS = FetchSpec(logits=True)
CHOICE = FetchSpec(logits=True, has_choices=True)


def fetch_for(outputs: OutputSpec) -> FetchSpec:
    """What a feed's outputs need."""
    kind = outputs.kind
    return FetchSpec(kind.is_vector, outputs.top_k if kind is OutputKind.TOP_K else 0, outputs.has_trace)


TOKEN_OUTPUTS = {OutputSpec(OutputKind.NEXT_TOKEN): NEXT_TOKEN, OutputSpec(OutputKind.NONE): NEXT_TOKEN}
"""What the commonest outputs need."""


Chosen: TypeAlias = tuple[int, float] | Exception
"""A token and its log-probability, NaN where it was not asked for; or why none could be chosen."""

NO_CHOICES: dict[int, Chosen] = {}


class StepResult:
    """logits: [B, T, V], or None when they were not fetched. next_tokens: [B, T], or None when the graph has no such
    head. top_log_probabilities, top_ids: [B, T, K] likewise, or when no row asked. gives_values: whether the logits are
    values. trace: the trace graph's outputs, by name and row: [T, units], or [T, source] as long as the row's own
    source; empty when no row asked. chosen: by row, of the rows that do not take the likeliest
    token."""

    __slots__ = (
        "_lists",
        "chosen",
        "gives_values",
        "logits",
        "next_tokens",
        "top_ids",
        "top_log_probabilities",
        "trace",
    )

    def __init__(
        self,
        logits: FloatArray | None,
        next_tokens: Array | None = None,
        top_log_probabilities: Array | None = None,
        top_ids: Array | None = None,
        *,
        gives_values: bool = False,
    ) -> None:
        if next_tokens is None and logits is not None and logits.shape[1] == 1 and not gives_values:
            next_tokens = logits.argmax(axis=-1)
        self.logits = logits
        self.next_tokens = next_tokens
        self.top_log_probabilities = top_log_probabilities
        self.top_ids = top_ids
        self.gives_values = gives_values
        self.trace: dict[str, list[FloatArray]] = {}
        self.chosen = NO_CHOICES
        self._lists: list[list[int]] | None = None

    def row(self, row: Any, column: Any) -> FloatRow:
        """The logits [V] of one token of one row, a view; of several rows, or of a slice of tokens, [N, V]. Raises
        ValueError when they were not fetched."""
        if self.logits is None:
            raise ValueError("no logits were fetched for this batch")
        logits: FloatRow = self.logits[row, column]
        return logits

    def next_item(self, row: int, column: int) -> Item:
        """What comes next: the likeliest token, or the values as a vector."""
        return Items.vector(self.row(row, column)) if self.gives_values else self.next_token(row, column)

    def next_token(self, row: int, column: int) -> int:
        """The likeliest next token."""
        if self._lists is None:
            if self.next_tokens is None:
                return int(self.row(row, column).argmax())
            self._lists = self.next_tokens.tolist()
        return self._lists[row][column]

    def top_k(self, row: int, column: int, k: int) -> tuple[list[int], list[float]]:
        """The k likeliest next tokens and their log-probabilities, the likeliest first."""
        if self.top_ids is not None and self.top_log_probabilities is not None:
            return self.top_ids[row, column, :k].tolist(), self.top_log_probabilities[row, column, :k].tolist()
        logits = self.row(row, column)
        best = top_k(logits, k)
        return best.tolist(), log_softmax(logits)[best].tolist()

    def output(self, row: int, column: int, spec: OutputSpec, position: int) -> StepOutput | None:
        """What a feed asked for after one of its tokens."""
        output = None
        if spec.kind is OutputKind.NEXT_TOKEN:
            output = StepOutput(position, [self.next_token(row, column)])
        elif spec.kind is OutputKind.TOP_K:
            output = StepOutput(position, *self.top_k(row, column, spec.top_k))
        elif spec.kind.is_vector:
            output = StepOutput(position, [], None, np.array(self.row(row, column)))
        elif spec.kind is OutputKind.EMITTED and self.row(row, column)[0]:
            ids, scores, num_limited = emitted(self.row(row, column))
            output = StepOutput(position, ids, scores, num_limited=num_limited)
        if spec.has_trace and self.trace:
            trace = {name: np.array(rows[row][column]) for name, rows in self.trace.items()}
            output = (output or StepOutput(position, []))._replace(trace=trace)
        return output


def known(logits: FloatRow, gives_values: bool) -> StepResult:
    """What was kept of an earlier run, logits [V], as the result of a batch of one row."""
    return StepResult(logits[np.newaxis, np.newaxis], gives_values=gives_values)
