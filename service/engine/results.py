"""Defines results: of a graph's run, by row and token; of jobs, as answers; and copies of a lane's state.

If a graph has an output for a value, such as the next token, the value always comes from that output, else from the
logits, whatever else was fetched. Only a generation that does more than take the likeliest token, such as report its
log-probability, always takes it from the logits. So a session's results do not depend on what other sessions asked for.
Shapes: `B` rows, `T` tokens, `V` vocabulary, `K` the largest k that a row asked for.

The thread that drives the engine reads lanes between batches, and can write a copy into an idle lane. Knows no session
and no format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from service.engine.arena import Arena, Array
from service.engine.beam import Hypothesis
from service.engine.decoding import Decoding, FinishReason, FloatArray, FloatRow, IntArray, log_softmax, top_k
from service.engine.emitted import emitted
from service.engine.jobs import NO_TOKENS, Item, Items, Job, Lane, OutputKind, OutputSpec, Remainder, StepBatchJob
from service.engine.last_tokens import LastTokens
from service.errors import CarouselError


class LaneState(NamedTuple):
    """Copy of a lane at a boundary between tokens. The arrays must not be written to.

    pending, next_logits: see `Lane`. states: one array for each state tensor, of the manifest's shape without its batch
    axis; contexts: one [S, ...] array for each context tensor, S the source's length. num_produced, seen, decoding: of
    an active generation: its number of tokens so far, [any number] the tokens that the repetition penalty has noted,
    and how it chooses tokens. decoding is None in a state that was read from a snapshot.
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
        """Bytes of its state and context arrays."""
        return sum(array.nbytes for array in (*self.states, *self.contexts))


def read_lanes(arena: Arena, lanes: Sequence[Lane]) -> list[LaneState | None]:
    """Copies the state of lanes. None for a lane that is closed, or whose feed or source is run in part: try later."""
    remainders = [_remainder(lane) for lane in lanes]
    rows = [lane.slot.row for lane, remainder in zip(lanes, remainders, strict=True) if remainder is not None]
    copies = iter(arena.read(rows))
    found: list[LaneState | None] = []
    for lane, remainder in zip(lanes, remainders, strict=True):
        if remainder is None:
            found.append(None)
            continue
        states, contexts = next(copies)
        pending, num_produced, seen, decoding = remainder
        next_logits = None if pending else lane.next_logits
        found.append(LaneState(lane.position, pending, next_logits, states, contexts, num_produced, seen, decoding))
    return found


def write_lane(arena: Arena, lane: Lane, state: LaneState) -> None:
    """Copies a saved state into an idle lane. An unfinished generation is not restored. Raises ValueError when the
    arrays do not have the arena's shapes."""
    arena.write(lane.slot.row, state.states, state.contexts)
    lane.position = state.position
    lane.pending = state.pending or NO_TOKENS
    lane.next_logits = state.next_logits


def _remainder(lane: Lane) -> Remainder | None:
    if lane.is_closed:
        return None
    return Remainder(lane.pending) if lane.active is None else lane.active.remainder(lane)


class StepOutput(NamedTuple):
    """What comes next at `position`. logits: [V], only for `OutputKind.LOGITS` and `OutputKind.VALUES`. trace: outputs
    of the trace graph for the step, by name, [units] or [source] each. num_limited: for `OutputKind.EMITTED`, how many
    encoded frames emitted their maximum number of tokens."""

    position: int
    token_ids: list[int]
    log_probabilities: list[float] | None = None
    logits: FloatRow | None = None
    trace: dict[str, FloatRow] | None = None
    num_limited: int = 0


class Encoded(NamedTuple):
    """Answer to an `EncodeJob`."""

    position: int


class Fed(NamedTuple):
    """Answer to a `FeedJob`. position: after the feed. mark: the lane's state after it, when the job has a mark."""

    position: int
    outputs: list[StepOutput]
    mark: LaneState | None = None


class Generated(NamedTuple):
    """An answer to a `GenerateJob`: tokens, the end of the generation, or both. position: after the tokens.

    log_probabilities: one for each token, when the job asked for them. before: only in the first answer, and only for
    models that keep their last tokens in a state.
    """

    position: int
    token_ids: Sequence[Item]
    log_probabilities: list[float] | None
    finish_reason: FinishReason | None
    before: LastTokens | None = None


class Searched(NamedTuple):
    """Answer to a `SearchJob`. hypotheses: best first; the session has consumed the first. position: after it. before:
    see `Generated`."""

    position: int
    hypotheses: list[Hypothesis]
    before: LastTokens | None = None


class Scored(NamedTuple):
    """Answer to a `ScoreJob`. log_probabilities: of each target's tokens. position: the session's, not changed."""

    position: int
    log_probabilities: list[list[float]]


class Stepped(NamedTuple):
    """Answer to a `StepBatchJob`, as columns of N values in the order of its lanes; 0 for a row that failed.

    positions: [N] after the step batch. token_ids: [N * k] the k likeliest next tokens, k = 1 unless the job asked for
    more. log_probabilities: [N * k], for `OutputKind.TOP_K`. logits: [N, V], for `OutputKind.LOGITS`, and values for
    `OutputKind.VALUES` and `OutputKind.EMITTED`. errors: (place, error) of each row that failed, where place is its
    index in `lanes`.
    """

    positions: list[int]
    token_ids: list[int]
    log_probabilities: list[float]
    logits: FloatArray | None
    errors: list[tuple[int, CarouselError]]


class Failed(NamedTuple):
    """Answer to any job that was not done to its end. position: the session's present position."""

    position: int
    error: CarouselError


Result = Encoded | Fed | Generated | Searched | Scored | Failed
"""The result of a job of one session."""


class Produced(NamedTuple):
    """Results of commands and batches, in order. entries: a job and a result for its `reply`, or None and a function to
    call. num_ended: jobs that got their last result; num_partial: results that are not the last of their jobs;
    num_freed: forks that were freed."""

    entries: list[tuple[Job | None, Any]]
    num_ended: int
    num_partial: int
    num_freed: int


def all_failed(job: StepBatchJob, error: CarouselError) -> Stepped:
    """Returns the answer to a step batch of which every row fails with `error`."""
    size = len(job.lanes) * job.width
    errors = [(place, error) for place in range(len(job.lanes))]
    scores = [0.0] * size if job.outputs.top_k else []
    return Stepped([lane.position for lane in job.lanes], [0] * size, scores, None, errors)


class FetchSpec(NamedTuple):
    """Which graph outputs a batch needs beside the likeliest token. logits: of every token; top_k: the largest k of any
    row, 0 for none; trace: the outputs of the trace graph. has_choices: whether a row chooses its token in another way
    than by taking the likeliest."""

    logits: bool = False
    top_k: int = 0
    trace: bool = False
    has_choices: bool = False

    def __or__(self, other: FetchSpec) -> FetchSpec:
        """Returns what two rows need together."""
        return FetchSpec(
            self.logits or other.logits,
            max(self.top_k, other.top_k),
            self.trace or other.trace,
            self.has_choices or other.has_choices,
        )


NEXT_TOKEN = FetchSpec()
"""Only the likeliest token. Every row is compared with this object by identity, because that is fast."""
LOGITS = FetchSpec(logits=True)
CHOICE = FetchSpec(logits=True, has_choices=True)


def fetch_for(outputs: OutputSpec) -> FetchSpec:
    """Returns the `FetchSpec` for a feed's outputs."""
    kind = outputs.kind
    return FetchSpec(kind.is_vector, outputs.top_k if kind is OutputKind.TOP_K else 0, outputs.has_trace)


TOKEN_OUTPUTS = {OutputSpec(OutputKind.NEXT_TOKEN): NEXT_TOKEN, OutputSpec(OutputKind.NONE): NEXT_TOKEN}
"""The `FetchSpec` of the most frequent outputs."""


Chosen: TypeAlias = tuple[int, float] | Exception
"""A token and its log-probability (NaN if not asked for), or the exception that choosing raised."""

NO_CHOICES: dict[int, Chosen] = {}


class StepResult:
    """Outputs of one run.

    logits: [B, T, V], or values if gives_values; None when not fetched. next_tokens: [B, T], None when the graph has no
    such output; for T = 1 they are computed from the logits then. top_log_probabilities, top_ids: [B, T, K], None when
    the graph has no such outputs, or when no row asked. trace: outputs of the trace graph, by name and then by row:
    [T, units], or [T, source] with the row's own source length; empty when no row asked. chosen: by row, the choices of
    rows that do not simply take the likeliest token.
    """

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
        """Returns the logits of one token of one row, [V], a view; of several rows, or of a slice of tokens, [N, V].
        Raises ValueError when no logits were fetched."""
        if self.logits is None:
            raise ValueError("no logits were fetched for this batch")
        logits: FloatRow = self.logits[row, column]
        return logits

    def next_item(self, row: int, column: int) -> Item:
        """Returns the next item: the likeliest token, or the values as a vector."""
        return Items.vector(self.row(row, column)) if self.gives_values else self.next_token(row, column)

    def next_token(self, row: int, column: int) -> int:
        """Returns the likeliest next token."""
        if self._lists is None:
            if self.next_tokens is None:
                return int(self.row(row, column).argmax())
            self._lists = self.next_tokens.tolist()
        return self._lists[row][column]

    def top_k(self, row: int, column: int, k: int) -> tuple[list[int], list[float]]:
        """Returns the k likeliest next tokens and their log-probabilities, the likeliest first."""
        if self.top_ids is not None and self.top_log_probabilities is not None:
            return self.top_ids[row, column, :k].tolist(), self.top_log_probabilities[row, column, :k].tolist()
        logits = self.row(row, column)
        best = top_k(logits, k)
        return best.tolist(), log_softmax(logits)[best].tolist()

    def output(self, row: int, column: int, spec: OutputSpec, position: int) -> StepOutput | None:
        """Returns what a feed asked for after one of its tokens; None if that is nothing."""
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
    """Wraps the logits [V] that a lane kept from an earlier run as the result of a batch of one row."""
    return StepResult(logits[np.newaxis, np.newaxis], gives_values=gives_values)
