"""Tensors of an ONNX file, and which of their axes count rows and steps: detected if possible, otherwise from flags."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from export.errors import ExportError
from export.surgery import element_type
from service.repository.manifest import Dtype

_DTYPES: dict[int, Dtype] = {element_type(dtype): dtype for dtype in get_args(Dtype)}
_BATCH_NAMES = re.compile(r"^(?:b|n|batch(?:_?size)?|bs|num_batch(?:es)?|batch_?dim)$", re.IGNORECASE)
_TIME_NAMES = re.compile(
    r"^(?:t|l|time|(?:seq|sequence)(?:_?len(?:gth)?)?|(?:time_?)?steps?|frames?|length)$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output. shape: the size of each axis, or the name of an axis without a size."""

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"

    @property
    def of_one_row(self) -> tuple[int, ...]:
        """Its shape with 1 for each axis without a size."""
        return tuple(axis if isinstance(axis, int) else 1 for axis in self.shape)


@dataclass(frozen=True, slots=True)
class Hints:
    """What the user says with flags.

    states: outputs by input. constants: values by input. axes: sizes by the name of an axis. batch_axes: by tensor.
    inputs, outputs: those of the step, in order. windows: lengths by input. start, end: the inputs that are true at a
    session's first and last step. session_constants: values to try, the default first, of inputs that each session gets
    once, by input. session_id: the input that is the session's number. initial: first values of states, without the
    batch axis, by input. force_state: accept pairs that contradict the graph. states_are_complete: whether `states` are
    known to be complete, so that the graph is not searched for states. expose_state: make the states of recurrent nodes
    inputs and outputs.
    """

    states: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Sequence[float]] = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)
    batch_axes: Mapping[str, int] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    windows: Mapping[str, int] = field(default_factory=dict)
    start: str | None = None
    end: str | None = None
    session_constants: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    session_id: str | None = None
    initial: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    force_state: bool = False
    states_are_complete: bool = False
    expose_state: bool = False

    @property
    def other_roles(self) -> tuple[str, ...]:
        """The inputs that are neither a step's numbers nor states: constants, session constants, start, session id."""
        single = (self.start, self.session_id)
        return (*self.constants, *self.session_constants, *(name for name in single if name is not None))


def tensor_of(value: onnx.ValueInfoProto, hints: Hints) -> Tensor:
    """Returns the tensor that a file declares. Raises ExportError for a type that is not served."""
    kind = value.type.tensor_type
    dtype = _DTYPES.get(kind.elem_type)
    if dtype is None:
        name = TensorProto.DataType.Name(kind.elem_type)
        raise ExportError(
            f"{value.name} has the type {name}: only {', '.join(sorted(_DTYPES.values()))} are served. Export the"
            " module with one of these, and cast it inside"
        )
    shape: list[int | str] = []
    for place, axis in enumerate(kind.shape.dim):
        name = axis.dim_param or f"{value.name}.{place}"
        shape.append(axis.dim_value if axis.HasField("dim_value") else hints.axes.get(name, name))
    return Tensor(value.name, dtype, tuple(shape))


def declared(model: onnx.ModelProto, hints: Hints) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the inputs that are no weights, and the outputs, by name. Raises as `tensor_of`."""
    weights = {one.name for one in model.graph.initializer}
    inputs = {one.name: tensor_of(one, hints) for one in model.graph.input if one.name not in weights}
    return inputs, {one.name: tensor_of(one, hints) for one in model.graph.output}


def listed(tensors: Mapping[str, Tensor] | Iterable[Tensor]) -> str:
    """Returns tensors as messages list them."""
    return "; ".join(map(str, tensors.values() if isinstance(tensors, Mapping) else tensors))


def check_axes(model: onnx.ModelProto, hints: Hints) -> None:
    """Raises ExportError for a size, from flags, of an axis that the file does not have, or that has another size."""
    free, sized = set(), {}
    for value in [*model.graph.input, *model.graph.output]:
        for place, axis in enumerate(value.type.tensor_type.shape.dim):
            name = axis.dim_param or f"{value.name}.{place}"
            if axis.HasField("dim_value"):
                sized[name] = axis.dim_value
            else:
                free.add(name)
    for name, size in hints.axes.items():
        if sized.get(name, size) != size:
            raise ExportError(f"--axis {name}={size}: that axis has the size {sized[name]} in the file")
        if name not in free and name not in sized:
            raise ExportError(
                f"--axis names {name}, which the file does not have. Its axes without a size:"
                f" {', '.join(sorted(free)) or 'none'}"
            )


def check_constant(tensor: Tensor, values: Sequence[float], flag: str = "--constant") -> None:
    """Raises ExportError for values outside the range of an integer or boolean tensor. flag: for the message."""
    ranges = {"bool": (0.0, 2.0), "int32": (-(2.0**31), 2.0**31), "int64": (-(2.0**63), 2.0**63)}
    least, end = ranges.get(tensor.dtype, (None, None))
    for value in values:
        if least is not None and end is not None and not (float(value).is_integer() and least <= value < end):
            raise ExportError(
                f"{flag} {tensor.name}={value:g}: {tensor} takes integers from {int(least)} to {int(end) - 1}"
            )


def check_numbers(flag: str, tensor: Tensor, values: Sequence[float]) -> None:
    """Raises ExportError for a flag's numbers that a tensor cannot represent, or that are not finite."""
    check_constant(tensor, values, flag)
    with np.errstate(over="ignore"):
        rounded = np.array(values, np.float64).astype(tensor.dtype)
    for value, one in zip(values, rounded, strict=True):
        if not np.isfinite(one):
            raise ExportError(f"{flag} {tensor.name}={value:g}: give a finite number in the range of {tensor.dtype}")


def batch_name(source: Tensor, others: Mapping[str, Tensor], hints: Hints) -> str | int:
    """Returns the axis of a step's input that counts rows: its name, or its size if that is fixed.

    others: other tensors by name; a flag may give the batch axis of one, and an axis of the same size or name counts
    rows here too. Raises ExportError when the axis cannot be found.
    """
    if source.name in hints.batch_axes:
        return source.shape[batch_axis(source, hints, lambda: 0)]
    axes_by_flag = {
        others[name].shape[place] for name, place in hints.batch_axes.items() if place < len(others[name].shape)
    }
    common = [axis for axis in source.shape if axis in axes_by_flag]
    if len(common) == 1:
        return common[0]
    named = [axis for axis in source.shape if isinstance(axis, str)]
    likely = [axis for axis in named if _BATCH_NAMES.match(axis)]
    if likely:
        return likely[0]
    if source.shape and source.shape[0] == 1:
        return 1
    first = source.shape[0] if source.shape else None
    if isinstance(first, str) and not _TIME_NAMES.match(first):
        return first
    others_of_rows = [axis for axis in source.shape[1:] if axis == 1] or named[1:]  # the first axis counts steps
    if isinstance(first, str) and len(others_of_rows) == 1:
        return others_of_rows[0]
    raise ExportError(
        f"which axis of {source} is the batch axis? Give it with --batch-axis {source.name}=PLACE, counted from 0. If"
        " there is none, export the module with one, of size 1 or without a size"
    )


def batch_axis(tensor: Tensor, hints: Hints, find: Callable[[], int]) -> int:
    """Returns a tensor's batch axis, from flags or else from `find`. Raises ExportError for an axis out of range."""
    if tensor.name not in hints.batch_axes:
        return find()
    place = hints.batch_axes[tensor.name]
    if place >= len(tensor.shape):
        raise ExportError(f"--batch-axis {tensor.name}={place}: {tensor} has {len(tensor.shape)} axes, counted from 0")
    named = [other for other, axis in enumerate(tensor.shape) if str(axis).lower().startswith("batch")]
    if named and place not in named:
        raise ExportError(
            f"--batch-axis {tensor.name}={place}: axis {named[0]} of {tensor} is named {tensor.shape[named[0]]}. Use"
            f" --batch-axis {tensor.name}={named[0]}, or give that axis its size with --axis"
            f" {tensor.shape[named[0]]}=SIZE if it is not the batch axis"
        )
    return place


def axis_named(tensor: Tensor, batch: str | int) -> int:
    """Returns a tensor's batch axis: the one with that name or size, or else the first."""
    return tensor.shape.index(batch) if batch in tensor.shape else 0


def state_batch_axis(tensor: Tensor, batch: str | int) -> int:
    """Returns a state's batch axis.

    That is the axis with the name or size `batch`, or the only axis of size 1 or without a size. If there are several,
    it is the second of three axes, as in [layers, batch, units], or else the first of them. Raises ExportError for a
    state that has none.
    """
    if batch != 1 and tensor.shape.count(batch) == 1:
        return tensor.shape.index(batch)
    free = [place for place, axis in enumerate(tensor.shape) if not isinstance(axis, int) or axis == 1]
    if len(free) == 1:
        return free[0]
    if not free:
        raise ExportError(
            f"which axis of the state {tensor} is the batch axis? Give it with --batch-axis {tensor.name}=PLACE,"
            " counted from 0. If there is none, export the module with a state that has one, of size 1 or without a"
            " size"
        )
    return 1 if len(tensor.shape) == 3 and 1 in free else free[0]


def is_time_name(name: str) -> bool:
    """Whether an axis with that name probably counts steps."""
    return _TIME_NAMES.match(name) is not None


def sized_axes(model: onnx.ModelProto, name: str) -> set[str]:
    """Returns the inputs that have an axis with that name."""
    return {
        value.name
        for value in model.graph.input
        if any(axis.dim_param == name for axis in value.type.tensor_type.shape.dim)
    }


def is_time(tensor: Tensor, place: int) -> bool:
    """Whether an axis may count steps: it has no size, and it belongs to tokens or is not the last axis.

    place: an axis that does not count rows.
    """
    if not isinstance(tensor.shape[place], str):
        return False
    is_last = place == len(tensor.shape) - 1
    return tensor.dtype in ("int64", "int32") or not is_last


def size_of(tensor: Tensor, place: int) -> int:
    """Returns the length of an axis. Raises ExportError for one without a size."""
    axis = tensor.shape[place]
    if isinstance(axis, int):
        return axis
    raise ExportError(f"the axis {axis} of {tensor} has no size: give it with --axis {axis}=SIZE")
