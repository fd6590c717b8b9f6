"""Reads what inputs and outputs of an ONNX file mean: the step's inputs, pairs of state, constants, batch axes.

Finds them in the graph if possible, and takes them from flags otherwise. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np
import onnx

from export.errors import ExportError
from export.foreign.axes import (
    Hints,
    Tensor,
    axis_named,
    batch_axis,
    batch_name,
    check_axes,
    check_constant,
    declared,
    is_time,
    is_time_name,
    listed,
    size_of,
    sized_axes,
    state_batch_axis,
)
from export.foreign.initial import first_value
from export.foreign.loading import check_opset
from export.foreign.pairing import pair_states
from export.foreign.session_constants import SessionConstant, session_constants
from export.proofs.runners import Array
from export.surgery import opset_of

MIN_OPSET = 7


@dataclass(frozen=True, slots=True)
class State:
    """A state tensor: its input, its output and its batch axis.

    shape: with 1 row. initial: its first value, in that shape; None: zeros.
    """

    input: Tensor
    output: str
    batch_axis: int
    shape: tuple[int, ...]
    initial: Array | None = None


@dataclass(frozen=True, slots=True)
class StepInput:
    """A tensor that each step reads.

    shape: of one step of one row, so the batch axis and the time axes are 1. time_axes: axes that count steps and have
    no size. window: how many of the first elements of its last axis repeat the last ones of the steps before. is_end:
    whether it is true only at a session's last step.
    """

    tensor: Tensor
    batch_axis: int
    shape: tuple[int, ...]
    time_axes: tuple[int, ...]
    window: int = 0
    is_end: bool = False

    @property
    def size(self) -> int:
        """How many new numbers a step brings."""
        return prod(self.shape) - self.window


@dataclass(frozen=True, slots=True)
class StepOutput:
    """An output of each step."""

    tensor: Tensor
    batch_axis: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found in a file.

    unserved: names of outputs that are neither a step's nor states. repeated: constants with one value for each row.
    start: the input that is true at a session's first step. fixed_batch: the number of rows that the file is fixed to;
    None: any number.
    """

    inputs: tuple[StepInput, ...]
    outputs: tuple[StepOutput, ...]
    unserved: tuple[str, ...]
    states: tuple[State, ...]
    constants: Mapping[str, tuple[Tensor, Sequence[float]]]
    repeated: tuple[str, ...]
    start: Tensor | None
    session_constants: tuple[SessionConstant, ...]
    fixed_batch: int | None
    notes: tuple[str, ...]

    @property
    def constant_arrays(self) -> dict[str, Array]:
        """The constants' values for one row, by input."""
        return {
            name: np.array(values, tensor.dtype).reshape(tensor.of_one_row)
            for name, (tensor, values) in self.constants.items()
        }

    @property
    def is_of_tokens(self) -> bool:
        """Whether a step reads a token; otherwise it reads numbers."""
        return len(self.inputs) == 1 and self.inputs[0].tensor.dtype in ("int64", "int32")


def read(model: onnx.ModelProto, hints: Hints) -> Reading:
    """Returns the meaning of the file's inputs and outputs. Raises ExportError that says what is missing and which
    flag gives it."""
    check_opset("the file", opset_of(model), MIN_OPSET)
    inputs, outputs = declared(model, hints)
    for flag, names, known in (
        ("--state", hints.states, inputs),
        ("--state", hints.states.values(), outputs),
        ("--constant", hints.constants, inputs),
        ("--input", hints.inputs, inputs),
        ("--output", hints.outputs, outputs),
        ("--window", hints.windows, inputs),
        ("--start", [hints.start] if hints.start else [], inputs),
        ("--end", [hints.end] if hints.end else [], inputs),
        ("--session-constant", hints.session_constants, inputs),
        ("--session-id", [hints.session_id] if hints.session_id else [], inputs),
        ("--batch-axis", hints.batch_axes, inputs | outputs),
    ):
        for name in names:
            if name not in known:
                raise ExportError(f"{flag} names {name}, which the file does not have. It has: {listed(known)}")
    check_axes(model, hints)
    for flag, given_names in (("--input", hints.inputs), ("--output", hints.outputs)):
        if twice := [name for name in given_names if given_names.count(name) > 1]:
            raise ExportError(f"{flag} names {twice[0]} twice")
    notes: list[str] = []
    pairs = pair_states(model, inputs, outputs, hints, notes)
    constants = _constants(inputs, pairs, hints)
    sources = _step_inputs(inputs, {*pairs, *constants, *hints.other_roles, *([hints.end] if hints.end else [])}, hints)
    if hints.end is not None:
        sources = [*(one for one in sources if one.name != hints.end), inputs[hints.end]]
    given = _step_outputs(outputs, pairs, hints)
    notes += [
        f"axis {name} = {size}: several steps at once were not compared with steps one by one"
        for name, size in hints.axes.items()
        if is_time_name(name) and any(one.name in sized_axes(model, name) for one in sources)
    ]
    batch = batch_name(sources[0], inputs | outputs, hints)
    states = tuple(
        State(
            inputs[name],
            output_name,
            axis := batch_axis(inputs[name], hints, partial(state_batch_axis, inputs[name], batch)),
            shape := tuple(
                1 if place == axis else size_of(inputs[name], place) for place in range(len(inputs[name].shape))
            ),
            first_value(inputs[name], shape, hints),
        )
        for name, output_name in pairs.items()
    )
    if unknown := [name for name in hints.initial if name not in pairs]:
        raise ExportError(f"--initial names {unknown[0]}, which is not a state. The states: {', '.join(pairs)}")
    batches = [batch, *(state.input.shape[state.batch_axis] for state in states)]
    _check_start(None if hints.start is None else inputs[hints.start], batch)
    return Reading(
        tuple(_step_input(source, batch, hints) for source in sources),
        tuple(StepOutput(one, batch_axis(one, hints, partial(axis_named, one, batch))) for one in given),
        tuple(name for name, one in outputs.items() if name not in pairs.values() and one not in given),
        states,
        constants,
        tuple(name for name in constants if isinstance(batch, str) and inputs[name].shape[:1] == (batch,)),
        None if hints.start is None else inputs[hints.start],
        session_constants(inputs, batch, hints),
        fixed_batch=next((axis for axis in batches if isinstance(axis, int)), None),
        notes=tuple(notes),
    )


def _check_start(start: Tensor | None, batch: str | int) -> None:
    """Raises ExportError for a start input that is not one number, or one for each row."""
    if start is not None and [axis for axis in start.shape if axis not in (batch, 1)]:
        raise ExportError(f"--start {start.name}: {start} must be one number, or one a row: [], [batch] or [batch, 1]")


def _step_input(source: Tensor, batch: str | int, hints: Hints) -> StepInput:
    axis, places = batch_axis(source, hints, partial(axis_named, source, batch)), range(len(source.shape))
    time_axes = tuple(place for place in places if place != axis and is_time(source, place))
    shape = tuple(1 if place == axis or place in time_axes else size_of(source, place) for place in places)
    window = hints.windows.get(source.name, 0)
    if window and (not shape or axis == len(shape) - 1 or prod(shape) != shape[-1] or window >= shape[-1]):
        raise ExportError(
            f"--window {source.name}={window}: the input needs one axis besides batch and time, its last, longer than"
            f" the window; {source} is run as {list(shape)}"
        )
    is_end = source.name == hints.end
    if is_end and prod(shape) != 1:
        raise ExportError(f"--end {source.name}: {source} must be one number a row: [batch] or [batch, 1]")
    return StepInput(source, axis, shape, time_axes, window, is_end)


def _constants(
    inputs: Mapping[str, Tensor], pairs: Mapping[str, str], hints: Hints
) -> dict[str, tuple[Tensor, Sequence[float]]]:
    found: dict[str, tuple[Tensor, Sequence[float]]] = {}
    for name, values in hints.constants.items():
        tensor = inputs[name]
        count = prod(tensor.of_one_row)
        if len(values) not in (1, count):
            raise ExportError(f"--constant {name} has {len(values)} values, but {tensor} needs {count}")
        check_constant(tensor, values)
        found[name] = (replace(tensor, shape=tensor.of_one_row), list(values) * (count // len(values)))
    scalars = [
        one for name, one in inputs.items() if name not in (*pairs, *hints.other_roles, hints.end) and not one.shape
    ]
    if scalars:
        raise ExportError(
            f"{scalars[0]} is a scalar, the same in every step: give its value with --constant {scalars[0].name}=VALUE;"
            f" or use --session-constant {scalars[0].name} if each session has its own, --start {scalars[0].name} if it"
            f" is true only at a session's first step, --state {scalars[0].name}=OUTPUT if it is a state"
        )
    return found


def _step_inputs(inputs: Mapping[str, Tensor], others: Collection[str], hints: Hints) -> list[Tensor]:
    """Returns the inputs that each step reads: those from flags, or all without another role. others: the rest."""
    left = [one for name, one in inputs.items() if name not in others]
    unknown = [one for one in left if hints.inputs and one.name not in hints.inputs]
    if unknown:
        raise ExportError(f"what is {unknown[0]}? {_roles(unknown[0])}")
    if not left:
        raise ExportError("every input is a state or a constant: name the step's input with --input")
    if len(left) > 1 and not hints.inputs:
        roles = "; ".join(f"{one.name}: {_roles(one)}" for one in left)
        raise ExportError(f"which inputs does a step read? {listed(left)}. {roles}{_of_more_files(left)}")
    return [inputs[name] for name in hints.inputs] or left


def _of_more_files(left: Sequence[Tensor]) -> str:
    """Returns advice for a token with tensors that another file may return: memories, their masks or lengths."""
    tokens = [one for one in left if one.dtype.startswith("int")]
    given = [one for one in left if one.dtype.startswith("float") and len(one.shape) > 1]
    if not tokens or not given:
        return ""
    advice = ". If this is the decoder of a translator, give its encoder with --encoder FILE"
    if len(left) == 2:
        advice += (
            "; if it is the prediction network and the joiner of a transducer, use `python -m export transducer"
            " ENCODER FILE`"
        )
    return advice


def _roles(tensor: Tensor) -> str:
    """Returns what an input may be, with the flag for each."""
    name = tensor.name
    if not tensor.shape or (len(tensor.shape) == 1 and isinstance(tensor.shape[0], str)):
        return (
            f"the same in every step: --constant {name}=VALUE; given when a session is opened: --session-constant"
            f" {name}=VALUE; true only at the first step: --start {name}; at the last: --end {name}"
        )
    return (
        f"read by each step: --input {name}; a state: --state {name}=OUTPUT; given when a session is opened:"
        f" --session-constant {name}"
    )


def _step_outputs(outputs: Mapping[str, Tensor], pairs: Mapping[str, str], hints: Hints) -> list[Tensor]:
    if hints.outputs:
        return [outputs[name] for name in hints.outputs]
    left = [one for name, one in outputs.items() if name not in pairs.values()]
    if not left:
        raise ExportError("every output is a state: name the step's output with --output")
    if len(left) > 1:
        flags = " ".join(f"--output {one.name}" for one in left)
        raise ExportError(f"which outputs does a step return? {listed(left)}: use {flags}, or some of these")
    return left
