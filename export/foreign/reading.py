"""What an ONNX file that nobody here made takes and gives: which input is the step's, which pairs are state, what is
constant, which axis counts rows. Found where it can be, told by flags where it cannot; nothing is run here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto

from export.errors import ExportError
from export.foreign.pairing import pair_states
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
_BATCH_NAMES = re.compile(r"^(?:b|n|batch(?:_?size)?|bs|num_batch(?:es)?|batch_?dim)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output. shape: sizes, and the names of axes that have none."""

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Hints:
    """What is told by flags. states: outputs by input; constants: values by input, as text; axes: sizes by the name of
    an axis; batch_axes: by tensor; force_state: take pairs that contradict the graph; expose_state: make the states of
    recurrent nodes inputs and outputs."""

    states: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Sequence[float]] = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)
    batch_axes: Mapping[str, int] = field(default_factory=dict)
    input: str | None = None
    output: str | None = None
    force_state: bool = False
    expose_state: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """A state tensor: its input, its output, and the axis that counts rows. shape: with 1 row."""

    input: Tensor
    output: str
    batch_axis: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found. input_shape: of one step of one row, [1, ...], its time axis 1; has_dynamic_batch: whether rows
    can be more than one."""

    input: Tensor
    input_shape: tuple[int, ...]
    input_batch_axis: int
    output: Tensor
    output_batch_axis: int
    states: tuple[State, ...]
    constants: Mapping[str, tuple[Tensor, Sequence[float]]]
    has_dynamic_batch: bool
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
    ):
        for name in names:
            if name not in known:
                raise ExportError(f"{flag} names {name}, and the file has {_listed(known.values())}")
    notes: list[str] = []
    pairs = pair_states(model, inputs, outputs, hints, notes)
    constants = _constants(inputs, pairs, hints)
    source = _step_input(inputs, pairs, constants, hints)
    output = _step_output(outputs, pairs, hints)
    batch = _batch_name(source, hints)
    input_batch_axis = hints.batch_axes.get(source.name, _axis_named(source, batch))
    states = tuple(
        State(
            inputs[name],
            output_name,
            axis := hints.batch_axes.get(name, _state_batch_axis(inputs[name], batch)),
            tuple(1 if place == axis else _size(inputs[name], place) for place in range(len(inputs[name].shape))),
        )
        for name, output_name in pairs.items()
    )
    input_shape = tuple(
        1 if place == input_batch_axis or _is_time(source, place) else _size(source, place)
        for place in range(len(source.shape))
    )
    return Reading(
        source,
        input_shape,
        input_batch_axis,
        output,
        hints.batch_axes.get(output.name, _axis_named(output, batch)),
        states,
        constants,
        has_dynamic_batch=isinstance(batch, str)
        and all(isinstance(state.input.shape[state.batch_axis], str) for state in states),
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


def _batch_name(source: Tensor, hints: Hints) -> str | int:
    """The name of the axis that counts rows, or 1 when it is fixed at that."""
    if source.name in hints.batch_axes:
        return source.shape[hints.batch_axes[source.name]]
    named = [axis for axis in source.shape if isinstance(axis, str)]
    likely = [axis for axis in named if _BATCH_NAMES.match(axis)]
    if likely:
        return likely[0]
    if source.shape and source.shape[0] == 1:
        return 1
    if source.shape and isinstance(source.shape[0], str):
        return source.shape[0]
    raise ExportError(f"which axis of {source} counts rows? Say with --batch-axis {source.name}=PLACE, counted from 0")


def _axis_named(tensor: Tensor, batch: str | int) -> int:
    """Where a tensor counts rows: its axis of that name, or of size 1, or else the first."""
    return tensor.shape.index(batch) if batch in tensor.shape else 0


def _state_batch_axis(tensor: Tensor, batch: str | int) -> int:
    """Where a state counts rows: the axis of that name; or the only one of size 1 or without a size; of several, the
    second of three, as in [layers, batch, units], or else the first."""
    if isinstance(batch, str) and batch in tensor.shape:
        return tensor.shape.index(batch)
    free = [place for place, axis in enumerate(tensor.shape) if not isinstance(axis, int) or axis == 1]
    if len(free) == 1:
        return free[0]
    if not free:
        raise ExportError(f"which axis of the state {tensor} counts rows? Say with --batch-axis {tensor.name}=PLACE")
    return 1 if len(tensor.shape) == 3 and 1 in free else free[0]


def _is_time(tensor: Tensor, place: int) -> bool:
    """Whether an axis counts steps: one without a size, of tokens or between rows and features, that does not count
    rows."""
    if not isinstance(tensor.shape[place], str):
        return False
    is_last = place == len(tensor.shape) - 1
    return tensor.dtype in ("int64", "int32") or not is_last


def _size(tensor: Tensor, place: int) -> int:
    axis = tensor.shape[place]
    if isinstance(axis, int):
        return axis
    raise ExportError(f"how long is the axis {axis} of {tensor}? Say with --axis {axis}=SIZE")


def _listed(tensors: object) -> str:
    assert isinstance(tensors, Sequence) or hasattr(tensors, "__iter__")  # noqa: S101  # of Tensors
    return "; ".join(str(one) for one in tensors)
