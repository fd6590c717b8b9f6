"""Compares an ONNX file over a whole sequence with its exposed graph step by step: the proof of `--expose-state`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from export.errors import ExportError
from export.foreign.flow import Value
from export.foreign.reading import Reading
from export.proofs.runners import Array, draw, session_of
from export.proofs.tolerances import EXPOSED
from export.surgery import copy_of

NUM_STEPS = 6
"""The length of the sequence if the file accepts any length."""


class Whole:
    """One row of random values, and the outputs of both graphs for it.

    reading: of the exposed graph. time_axis: of the step's input; None if there is none. num_steps: the fixed length of
    that axis in the file; None if it accepts any.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        exposed: onnx.ModelProto,
        reading: Reading,
        time_axis: int | None,
        num_steps: int | None,
    ) -> None:
        self._model = model
        self._exposed = exposed
        self._reading = reading
        self._time_axis = time_axis
        self._num_steps = 1 if time_axis is None else num_steps or NUM_STEPS
        shape = list(reading.inputs[0].shape)
        if time_axis is not None:
            shape[time_axis] = self._num_steps
        self._sequence = draw(np.random.default_rng(0), shape, reading.inputs[0].tensor.dtype)
        self._constants = reading.constant_arrays
        self._states = {state.input.name: np.zeros(state.shape, state.input.dtype) for state in reading.states}

    @property
    def note(self) -> str:
        """Returns a note about what `check` proves."""
        if self._time_axis is None:
            return "the file takes one step: only a first step was compared with the exposed graph"
        return f"{self._num_steps} steps with exposed states are within {EXPOSED:g} of the file over all of them"

    def values(self, names: Sequence[Value]) -> list[Array]:
        """Returns values inside the file, from its run over the sequence."""
        return self._run_whole([name for _, name in names]) if names else []

    def check(self) -> None:
        """Raises ExportError that names the first output whose steps differ from the whole sequence's."""
        states = {state.output: state.input.name for state in self._reading.states}
        own = {one.name for one in self._model.graph.output}
        outputs = [one.name for one in self._exposed.graph.output if one.name in own and one.name not in states]
        whole = self._run_whole(outputs)
        steps = self._run_steps(outputs, states)
        for name, expected, found in zip(outputs, whole, steps, strict=True):
            difference = self._difference(name, expected, found)
            if not difference <= EXPOSED:  # also true for NaN
                raise ExportError(
                    f"--expose-state: {name} differs by {difference:.2g} (at most {EXPOSED:g}) between"
                    f" {self._num_steps} steps with the exposed states and the whole sequence. The file keeps another"
                    " state, or reads later steps"
                )

    def _difference(self, name: str, expected: Array, found: Sequence[Array]) -> float:
        """Returns the largest difference over all steps, or in the last step for an output without a time axis."""
        given = found[-1]
        if expected.shape != given.shape:
            longer = [place for place, size in enumerate(given.shape) if expected.shape[place : place + 1] != (size,)]
            if len(longer) != 1 or given.shape[longer[0]] != 1 or expected.ndim != given.ndim:
                raise ExportError(
                    f"--expose-state: {name} is {list(expected.shape)} over {self._num_steps} steps and"
                    f" {list(given.shape)} in one: only a time axis may differ"
                )
            given = np.concatenate(found, axis=longer[0])
        if expected.shape != given.shape:
            return float("inf")
        if not expected.size:
            return 0.0
        return float(np.max(np.abs(expected.astype(np.float64) - given.astype(np.float64))))

    def _run_whole(self, names: Sequence[str]) -> list[Array]:
        model = copy_of(self._model)
        declared = {one.name for one in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in declared)
        given = {one.name for one in model.graph.input}
        feeds = {name: array for name, array in self._states.items() if name in given}
        feeds |= {self._reading.inputs[0].tensor.name: self._sequence, **self._constants}
        what = f"over {self._num_steps} steps" if self._time_axis is not None else "as it is"
        return _run(_session(model, what), names, feeds, what)

    def _run_steps(self, names: Sequence[str], states: Mapping[str, str]) -> list[list[Array]]:
        """Returns each output's values, one for each step."""
        what = "one step at a time" if self._time_axis is not None else "with its states as inputs"
        session = _session(self._exposed, what)
        now = dict(self._states)
        found: list[list[Array]] = [[] for _ in names]
        for step in range(self._num_steps):
            item = self._sequence if self._time_axis is None else self._sequence.take([step], axis=self._time_axis)
            feeds = {self._reading.inputs[0].tensor.name: item, **now, **self._constants}
            given = _run(session, [*names, *states], feeds, what)
            now = dict(zip(states.values(), given[len(names) :], strict=True))
            for column, array in zip(found, given, strict=False):
                column.append(array)
        return found


def _session(model: onnx.ModelProto, what: str) -> Any:  # onnxruntime ships no types
    try:
        return session_of(model)
    except Exception as error:  # ONNX Runtime raises its own error classes
        raise _refusal(what) from error


def _run(session: Any, names: Sequence[str], feeds: Mapping[str, Array], what: str) -> list[Array]:
    try:
        found: list[Array] = session.run(list(names), dict(feeds))
    except Exception as error:  # ONNX Runtime raises its own error classes
        raise _refusal(what) from error
    return found


def _refusal(what: str) -> ExportError:
    return ExportError(
        f"--expose-state: the file cannot be run {what}. Export it with a dynamic time axis, or give the size of other"
        " axes with --axis NAME=SIZE"
    )
