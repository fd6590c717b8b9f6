"""One of a transducer's files: its tensors and states, and how to run it.

Shapes: `A` rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.proofs.runners import Array, draw
from export.proofs.tolerances import ROWS_OF_TRANSDUCER
from service.repository.manifest import Dtype


@dataclass(frozen=True, slots=True)
class Port:
    """A tensor of a file. shape: with one row; `batch_axis` counts rows."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    batch_axis: int

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Its shape without the batch axis."""
        return (*self.shape[: self.batch_axis], *self.shape[self.batch_axis + 1 :])

    @property
    def size(self) -> int:
        """How many numbers a row has."""
        return prod(self.shape)

    def enter(self, rows: Array) -> Array:
        """Returns rows [A, ...] in the file's layout."""
        whole = rows.reshape(len(rows), *self.row_shape).astype(self.dtype, copy=False)
        return np.ascontiguousarray(np.moveaxis(whole, 0, self.batch_axis))

    def leave(self, array: Array) -> Array:
        """Returns a tensor in the file's layout as rows [A, size]."""
        ahead = np.moveaxis(array, self.batch_axis, 0)
        return ahead.reshape(len(ahead), -1)


@dataclass(frozen=True, slots=True)
class Kept:
    """A state: its input, the output with its next value, and its first value with one row."""

    input: Port
    output: str
    initial: Array


@dataclass(frozen=True, slots=True)
class Network:
    """One of the files. Names of its tensors begin with its role and a dot.

    reads: inputs that are no states, by role. gives: the output that is no state. states: in the file's order.
    """

    role: str
    file: Path
    model: onnx.ModelProto
    reads: Mapping[str, Port]
    gives: Port
    states: tuple[Kept, ...] = ()
    notes: tuple[str, ...] = ()
    session: Any = field(default=None, compare=False)  # an InferenceSession; onnxruntime ships no types

    def run(self, reads: Mapping[str, Array], states: Sequence[Array]) -> tuple[Array, list[Array]]:
        """Runs the file. Returns its output as rows [A, size], and the next states.

        reads: rows [A, ...] by role. states: in the file's layout.
        """
        feeds = {port.name: port.enter(reads[what]) for what, port in self.reads.items()}
        feeds |= {kept.input.name: state for kept, state in zip(self.states, states, strict=True)}
        given, *following = self.session.run([self.gives.name, *(kept.output for kept in self.states)], feeds)
        return self.gives.leave(given), following

    def has_rows(self) -> bool:
        """Whether two rows in one run equal each row alone. False if they cannot run, as in a file of one row."""
        random = np.random.default_rng(0)
        each = [
            (
                {what: port.leave(draw(random, port.shape, port.dtype)) for what, port in self.reads.items()},
                [draw(random, kept.input.shape, kept.input.dtype) for kept in self.states],
            )
            for _ in range(2)
        ]
        reads = {what: np.concatenate([row[what] for row, _ in each]) for what in self.reads}
        try:
            given, after = self.run(reads, self._joined([states for _, states in each]))
            alone = [self.run(*one) for one in each]
        except Exception:  # ONNX Runtime raises its own error classes
            return False
        expected = [np.concatenate([one for one, _ in alone]), *self._joined([states for _, states in alone])]
        return all(
            one.shape == other.shape and np.allclose(one, other, ROWS_OF_TRANSDUCER, ROWS_OF_TRANSDUCER)
            for one, other in zip([given, *after], expected, strict=True)
        )

    def _joined(self, rows: Sequence[Sequence[Array]]) -> list[Array]:
        """Joins the states of several rows along their batch axes."""
        axes = [kept.input.batch_axis for kept in self.states]
        return [np.concatenate(each, axis) for axis, each in zip(axes, zip(*rows, strict=True), strict=True)]
