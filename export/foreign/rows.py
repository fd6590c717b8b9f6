"""Finds batch axes by running: two rows in one run must give the same as each row alone.

1. A time axis looks like a batch axis if neither has a size or a telling name. If it is taken for the batch axis, rows
   cannot share a run, several steps cannot be compared with single ones, and no proof says why. So both are tried if an
   input has two such axes.
2. An output's batch axis is the one that is twice as long for two rows. Its name, which files omit or invent, decides
   only if two rows cannot be run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from export.errors import ExportError
from export.foreign.axes import Hints
from export.foreign.reading import Reading, read
from export.proofs.runners import Array, draw, session_of
from export.proofs.tolerances import ROWS


def with_rows_as_run(model: onnx.ModelProto, reading: Reading, hints: Hints) -> Reading:
    """Returns the reading with the batch axes that runs show.

    These are axes of inputs whose time axis was taken for the batch axis, and axes of outputs. Raises ExportError when
    --batch-axis names an axis that runs contradict.
    """
    try:
        session = session_of(model)
    except Exception:  # ONNX Runtime raises its own error classes; `Original` reports why the file cannot be loaded
        return reading
    two = _Two(session, reading)
    if two.are_alone():
        return two.with_outputs(hints)
    swapped = {part.tensor.name: part.time_axes[0] for part in reading.inputs if len(part.time_axes) == 1}
    try:
        other = _Two(session, read(model, replace(hints, batch_axes={**hints.batch_axes, **swapped})))
    except ExportError:  # the file cannot be read with that batch axis
        return reading
    if not swapped or not other.are_alone():
        return reading
    notes = []
    for name, place in swapped.items():
        if name in hints.batch_axes:
            raise ExportError(
                f"--batch-axis {name}={hints.batch_axes[name]}: that is the time axis, and axis {place} is the batch"
                f" axis, as runs of two rows show. Use --batch-axis {name}={place}"
            )
        notes.append(f"the batch axis of {name} is {place}, as runs of two rows show")
    found = other.with_outputs(hints)
    return replace(found, notes=(*found.notes, *notes))


class _Two:
    """Two rows of random values and states, run alone and together."""

    def __init__(self, session: Any, reading: Reading) -> None:  # onnxruntime ships no types
        self._session = session
        self._reading = reading
        random = np.random.default_rng(0)
        self._rows = [
            {
                tensor.name: draw(random, shape, tensor.dtype)
                for tensor, shape in [
                    *((part.tensor, part.shape) for part in reading.inputs),
                    *((state.input, state.shape) for state in reading.states),
                ]
            }
            for _ in range(2)
        ]
        self._constants = reading.constant_arrays
        for constant in reading.session_constants:
            if constant.batch_axis is None:
                self._constants[constant.tensor.name] = constant.example[0, ...]
            else:
                for row in self._rows:
                    row[constant.tensor.name] = constant.example
        if reading.start is not None:
            self._constants[reading.start.name] = np.ones(reading.start.of_one_row, reading.start.dtype)

    def are_alone(self) -> bool:
        """Whether both rows have the same states after a step as when run alone. False if they cannot be run."""
        names = [state.output for state in self._reading.states]
        try:
            found, *alone = self._together(names), *(self._run(names, row) for row in self._rows)
        except Exception:  # ONNX Runtime raises its own error classes
            return False
        for state, both, *each in zip(self._reading.states, found, *alone, strict=True):
            if any(one.shape != state.shape for one in each):
                return False
            expected = np.concatenate(each, state.batch_axis)
            if both.shape != expected.shape or not np.allclose(both, expected, ROWS, ROWS):
                return False
        return True

    def with_outputs(self, hints: Hints) -> Reading:
        """Returns the reading with the outputs' batch axes: those that are twice as long for two rows."""
        reading = self._reading
        names = [output.tensor.name for output in reading.outputs]
        outputs = []
        for output, long, short in zip(
            reading.outputs, self._together(names), self._run(names, self._rows[0]), strict=True
        ):
            grown = [
                place for place, size in enumerate(short.shape) if size and long.shape[place : place + 1] == (2 * size,)
            ]
            found = output
            if short.ndim != len(output.tensor.shape):  # the file declares a wrong shape
                found = replace(output, tensor=replace(output.tensor, shape=short.shape), batch_axis=0)
            if len(grown) == 1 and long.ndim == short.ndim and output.tensor.name not in hints.batch_axes:
                shape = (*found.tensor.shape[: grown[0]], "batch", *found.tensor.shape[grown[0] + 1 :])
                found = replace(found, tensor=replace(found.tensor, shape=shape), batch_axis=grown[0])
            outputs.append(found)
        return replace(reading, outputs=tuple(outputs))

    def _together(self, names: Sequence[str]) -> list[Array]:
        axes = {part.tensor.name: part.batch_axis for part in self._reading.inputs}
        axes |= {state.input.name: state.batch_axis for state in self._reading.states}
        axes |= {
            constant.tensor.name: constant.batch_axis
            for constant in self._reading.session_constants
            if constant.batch_axis is not None
        }
        together = {name: np.concatenate([row[name] for row in self._rows], axis) for name, axis in axes.items()}
        start = self._reading.start
        names_of_rows = [*self._reading.repeated]
        if start is not None and start.shape and isinstance(start.shape[0], str):
            names_of_rows.append(start.name)
        repeated = {name: np.repeat(self._constants[name], 2, axis=0) for name in names_of_rows}
        return self._run(names, {**together, **repeated})

    def _run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        found: list[Array] = self._session.run(list(names), {**self._constants, **feeds})
        return found


def free_rows(model: onnx.ModelProto, reading: Reading) -> None:
    """Replaces the fixed number of rows in the file's inputs and outputs by the axis `batch`."""
    axes = {part.tensor.name: part.batch_axis for part in reading.inputs}
    axes |= {output.tensor.name: output.batch_axis for output in reading.outputs}
    for state in reading.states:
        axes |= {state.input.name: state.batch_axis, state.output: state.batch_axis}
    for value in [*model.graph.input, *model.graph.output]:
        shape = value.type.tensor_type.shape.dim
        if value.name in axes and len(shape) > axes[value.name]:
            shape[axes[value.name]].dim_param = "batch"
    del model.graph.value_info[:]
