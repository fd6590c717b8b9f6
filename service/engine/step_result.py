"""What a run of the step or readout graph must fetch, and what it gave, by row of the batch and by token in it.

Heads of the graph give a value where the graph has them, and logits where it has not, whatever else was fetched: what
a session gets does not depend on what its neighbours asked for. Shapes: `B` rows, `T` tokens, `V` vocabulary, `K` the
most that a row asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from service.engine.arena import Array
from service.engine.decoding import FloatArray, FloatRow, log_softmax, top_k
from service.engine.jobs import Item, Items, OutputKind, OutputSpec
from service.engine.results import StepOutput


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
        if spec.has_trace and self.trace:
            trace = {name: np.array(rows[row][column]) for name, rows in self.trace.items()}
            output = (output or StepOutput(position, []))._replace(trace=trace)
        return output


def known(logits: FloatRow, gives_values: bool) -> StepResult:
    """What was kept of an earlier run, logits [V], as the result of a batch of one row."""
    return StepResult(logits[np.newaxis, np.newaxis], gives_values=gives_values)
