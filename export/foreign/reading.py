"""What an ONNX file that nobody here made takes and gives: which input is the step's, which pairs are state, what is
constant, which axis counts rows. Found where it can be, told by flags where it cannot; nothing is run here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import onnx
from onnx import TensorProto

from export.errors import ExportError
from export.foreign.axes import (
    Hints,
    Tensor,
    axis_named,
    batch_axis,
    batch_name,
    check_axes,
    is_time,
    size_of,
    state_batch_axis,
)
from service.repository.manifest import Dtype

MIN_OPSET = 7

_DTYPES: dict[int, Dtype] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
}
_AFFIXES = re.compile(
    r"^(?:next|new|out|outputs?|updated|final|last|initial|init|prev|previous|past|present|in|inputs?)_"
    r"|_(?:next|new|out|outputs?|updated|final|last|initial|init|prev|previous|past|present|in|inputs?)$"
    r"|_?[n0t]$"
)


@dataclass(frozen=True, slots=True)
class State:
    """A state tensor: its input, its output, and the axis that counts rows. shape: with 1 row."""

    input: Tensor
    output: str
    batch_axis: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found. input_shape: of one step of one row, [1, ...], its time axis 1; time_axes: those of the input
    that count steps, and have no size; repeated: constants of which each row has one;
    fixed_batch: how many rows the file says that it takes; None: any number."""

    input: Tensor
    input_shape: tuple[int, ...]
    input_batch_axis: int
    time_axes: tuple[int, ...]
    output: Tensor
    output_batch_axis: int
    states: tuple[State, ...]
    constants: Mapping[str, tuple[Tensor, Sequence[float]]]
    repeated: tuple[str, ...]
    fixed_batch: int | None
    notes: tuple[str, ...]


def read(model: onnx.ModelProto, hints: Hints) -> Reading:
    """Raises ExportError that says what is missing and which flag gives it."""
    opset = max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_OPSET:
        raise ExportError(f"the file has opset {opset}, and {MIN_OPSET} or later is needed: convert it first")
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {one.name: _tensor(one, hints) for one in model.graph.input if one.name not in weights}
    outputs = {one.name: _tensor(one, hints) for one in model.graph.output}
    for flag, names, known in (
        ("--state", hints.states, inputs),
        ("--state", hints.states.values(), outputs),
        ("--constant", hints.constants, inputs),
        ("--input", [hints.input] if hints.input else [], inputs),
        ("--output", [hints.output] if hints.output else [], outputs),
        ("--batch-axis", hints.batch_axes, inputs | outputs),
    ):
        for name in names:
            if name not in known:
                raise ExportError(f"{flag} names {name}, and the file has {_listed(known.values())}")
    check_axes(model, hints)
    notes: list[str] = []
    pairs = _pairs(inputs, outputs, hints, notes)
    constants = _constants(inputs, pairs, hints)
    source = _step_input(inputs, pairs, constants, hints)
    output = _step_output(outputs, pairs, hints)
    batch = batch_name(source, inputs | outputs, hints)
    input_batch_axis = batch_axis(source, hints, lambda: axis_named(source, batch))
    states = tuple(
        State(
            inputs[name],
            output_name,
            axis := batch_axis(inputs[name], hints, partial(state_batch_axis, inputs[name], batch)),
            tuple(1 if place == axis else size_of(inputs[name], place) for place in range(len(inputs[name].shape))),
        )
        for name, output_name in pairs.items()
    )
    time_axes = tuple(
        place for place in range(len(source.shape)) if place != input_batch_axis and is_time(source, place)
    )
    input_shape = tuple(
        1 if place == input_batch_axis or place in time_axes else size_of(source, place)
        for place in range(len(source.shape))
    )
    batches = [batch, *(state.input.shape[state.batch_axis] for state in states)]
    return Reading(
        source,
        input_shape,
        input_batch_axis,
        time_axes,
        output,
        batch_axis(output, hints, lambda: axis_named(output, batch)),
        states,
        constants,
        tuple(name for name in constants if isinstance(batch, str) and inputs[name].shape[:1] == (batch,)),
        fixed_batch=next((axis for axis in batches if isinstance(axis, int)), None),
        notes=tuple(notes),
    )


def _tensor(value: onnx.ValueInfoProto, hints: Hints) -> Tensor:
    kind = value.type.tensor_type
    dtype = _DTYPES.get(kind.elem_type)
    if dtype is None:
        name = TensorProto.DataType.Name(kind.elem_type)
        raise ExportError(f"{value.name} is of {name}: only {', '.join(sorted(_DTYPES.values()))} are served")
    shape: list[int | str] = []
    for place, axis in enumerate(kind.shape.dim):
        name = axis.dim_param or f"{value.name}.{place}"
        shape.append(axis.dim_value if axis.HasField("dim_value") else hints.axes.get(name, name))
    return Tensor(value.name, dtype, tuple(shape))


def _pairs(
    inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], hints: Hints, notes: list[str]
) -> dict[str, str]:
    """State outputs by state input: those told, then those that are of one shape and of kindred names."""
    pairs = dict(hints.states)
    taken = {*pairs.values(), hints.output}
    for name, tensor in inputs.items():
        if name in pairs or name in hints.constants or name == hints.input:
            continue
        kindred = [
            other.name
            for other in outputs.values()
            if other.name not in taken and _may_be(tensor, other) and _stem(other.name) == _stem(name)
        ]
        if len(kindred) == 1:
            pairs[name] = kindred[0]
            taken.add(kindred[0])
            notes.append(f"state {name} = {kindred[0]}: of one shape, and of kindred names")
    if not pairs:
        alike = [
            f"--state {one.name}={other.name}"
            for one in inputs.values()
            for other in outputs.values()
            if _may_be(one, other) and len(one.shape) > 1
        ]
        told = f"; of one shape are: {' '.join(alike)}" if alike else ""
        raise ExportError(
            f"no state was found: give each pair with --state INPUT=OUTPUT. Inputs: {_listed(inputs.values())}."
            f" Outputs: {_listed(outputs.values())}{told}"
        )
    return pairs


def _constants(
    inputs: Mapping[str, Tensor], pairs: Mapping[str, str], hints: Hints
) -> dict[str, tuple[Tensor, Sequence[float]]]:
    found: dict[str, tuple[Tensor, Sequence[float]]] = {}
    for name, values in hints.constants.items():
        tensor = inputs[name]
        shape = tuple(axis if isinstance(axis, int) else 1 for axis in tensor.shape)
        count = 1
        for axis in shape:
            count *= axis
        if len(values) not in (1, count):
            raise ExportError(f"--constant {name} has {len(values)} values, and {tensor} needs {count}")
        found[name] = (Tensor(name, tensor.dtype, shape), list(values) * (count // len(values)))
    scalars = [one for name, one in inputs.items() if name not in pairs and name not in found and not one.shape]
    if scalars:
        raise ExportError(
            f"{scalars[0]} is a scalar, the same in every step: give its value with --constant {scalars[0].name}=VALUE"
        )
    return found


def _step_input(
    inputs: Mapping[str, Tensor], pairs: Mapping[str, str], constants: Mapping[str, object], hints: Hints
) -> Tensor:
    if hints.input is not None:
        left = [one for name, one in inputs.items() if name not in pairs and name not in constants]
        others = [one for one in left if one.name != hints.input]
        if others:
            raise ExportError(
                f"{others[0]} is neither a state nor the step's input: give it with --constant {others[0].name}=VALUE,"
                f" or pair it with --state {others[0].name}=OUTPUT"
            )
        return inputs[hints.input]
    left = [one for name, one in inputs.items() if name not in pairs and name not in constants]
    if len(left) == 1:
        return left[0]
    if not left:
        raise ExportError("every input is a state or a constant: none is left for the step to read")
    raise ExportError(
        f"which input does a step read? {_listed(left)}: say with --input NAME, pair states with --state INPUT=OUTPUT,"
        " and give what is the same in every step with --constant NAME=VALUE"
    )


def _step_output(outputs: Mapping[str, Tensor], pairs: Mapping[str, str], hints: Hints) -> Tensor:
    if hints.output is not None:
        return outputs[hints.output]
    left = [one for name, one in outputs.items() if name not in pairs.values()]
    if len(left) == 1:
        return left[0]
    if not left:
        raise ExportError("every output is a state: none is left for the step to give")
    raise ExportError(f"which output does a step give? {_listed(left)}: say with --output NAME")


def _may_be(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors may be one state before and after: of one type, and of one shape as far as it is known."""
    if one.dtype != other.dtype:
        return False
    is_unknown = not other.shape  # some exporters leave out the shapes of outputs
    if is_unknown:
        return bool(one.shape)
    return len(one.shape) == len(other.shape) and all(
        left == right or isinstance(left, str) or isinstance(right, str)
        for left, right in zip(one.shape, other.shape, strict=True)
    )


def _stem(name: str) -> str:
    """A name without what tells before from after."""
    stem = re.sub(r"[.:/]", "_", name.lower()).strip("_")
    while (shorter := _AFFIXES.sub("", stem).strip("_")) and shorter != stem:
        stem = shorter
    return stem


def _listed(tensors: object) -> str:
    assert isinstance(tensors, Sequence) or hasattr(tensors, "__iter__")  # noqa: S101  # of Tensors
    return "; ".join(str(one) for one in tensors)
