"""What a run of a graph told, by row of the batch and by token in it.

The heads of the graph tell where it has them, and logits where it has not, whatever else was fetched: what a session is
told does not depend on what its neighbours asked for. Shapes: `B` rows, `T` tokens, `V` vocabulary, `K` the most that
a row asked for.
"""

from __future__ import annotations

import numpy as np

from service.engine.decoding import FloatArray, FloatRow, choose_batch, log_softmax, top_k
from service.engine.graph import Array
from service.engine.items import Item, Items
from service.engine.jobs import GenerateJob, OutputKind, OutputSpec
from service.engine.results import StepOutput
from service.engine.scheduler import Batch


class Outcome:
    """logits: [B, T, V], or None when they were not wanted. next_tokens: [B, T], or None when the graph has no such
    head. top_log_probabilities, top_ids: [B, T, K] likewise, or when nobody asked. gives_values: whether the logits are
    values. trace: what a look inside told, by name and row: [T, units], or [T, source] as long as the row's own source;
    empty when nobody asked."""

    __slots__ = ("_lists", "gives_values", "logits", "next_tokens", "top_ids", "top_log_probabilities", "trace")

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
        self._lists: list[list[int]] | None = None

    def row(self, row: int, column: int) -> FloatRow:
        """The logits [V] of one token of one row: a view."""
        assert self.logits is not None  # noqa: S101  # who asks has wanted them
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
            trace = {name: np.array(told[row][column]) for name, told in self.trace.items()}
            output = (output or StepOutput(position, []))._replace(trace=trace)
        return output


def choose_together(batch: Batch, outcome: Outcome) -> dict[int, tuple[int, float]]:
    """(token, log-probability or NaN) of all lanes of a batch that generate otherwise than by taking the likeliest
    token, chosen in one go, by their row."""
    rows, choices, columns = [], [], []
    for row, (lane, width) in enumerate(zip(batch.lanes, batch.widths, strict=True)):
        job = lane.job
        if isinstance(job, GenerateJob) and not job.takes_likeliest:
            assert job.choice is not None  # noqa: S101  # made when the generation began
            rows.append(row)
            choices.append(job.choice)
            columns.append(width - 1)
    if not rows:
        return {}
    assert outcome.logits is not None  # noqa: S101  # such generations want them
    tokens, log_probabilities = choose_batch(outcome.logits[rows, columns], choices)
    return dict(zip(rows, zip(tokens.tolist(), log_probabilities.tolist(), strict=True), strict=True))
