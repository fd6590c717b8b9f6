"""Inputs of an ONNX file that a session gets once: its constants, and the number that identifies it in the file.

In a bundle they are states that no step changes. An input without a batch axis has one value for all rows of a run;
rows with different values run separately.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from export.errors import ExportError
from export.foreign.axes import Hints, Tensor, batch_axis, check_numbers
from export.proofs.runners import Array
from service.repository.manifest import SessionConstantSpec


@dataclass(frozen=True, slots=True)
class SessionConstant:
    """One such input. batch_axis: None: one value for all rows. shape: of one row, without that axis."""

    tensor: Tensor
    batch_axis: int | None
    shape: tuple[int, ...]
    spec: SessionConstantSpec

    @property
    def example(self) -> Array:
        """An allowed value of one row, with the batch axis; it is the first axis if the file has none."""
        numbers = self.spec.default or (1.0,) * prod(self.shape)
        value = np.array(numbers, self.tensor.dtype).reshape(self.shape)
        return np.expand_dims(value, self.batch_axis or 0)


def session_constants(inputs: Mapping[str, Tensor], batch: str | int, hints: Hints) -> tuple[SessionConstant, ...]:
    """Returns the session constants from flags. batch: the step input's batch axis. Raises ExportError for values that
    do not fit."""
    found = [_constant(inputs[name], values, batch, hints) for name, values in hints.session_constants.items()]
    if hints.session_id is not None:
        tensor = inputs[hints.session_id]
        axis, shape = _row(tensor, batch, hints, "--session-id")
        if prod(shape) != 1:
            raise ExportError(f"--session-id {tensor.name}: {tensor} must be one number, or one a row")
        found.append(SessionConstant(tensor, axis, shape, SessionConstantSpec(is_session_number=True)))
    return tuple(found)


def _constant(tensor: Tensor, tried: Sequence[Sequence[float]], batch: str | int, hints: Hints) -> SessionConstant:
    flag = "--session-constant"
    axis, shape = _row(tensor, batch, hints, flag)
    size, is_whole = prod(shape), tensor.dtype in ("int32", "int64", "bool")
    for values in tried:
        if len(values) not in (1, size):
            raise ExportError(f"{flag} {tensor.name} has {len(values)} values, but {tensor} needs {size} a row")
        check_numbers(flag, tensor, values)
    full = list(dict.fromkeys(tuple(values) * (size // len(values)) for values in tried))
    if is_whole and len(full) < 2:
        shown = f"{tensor.name}={full[0][0]:g}" if full else tensor.name
        raise ExportError(
            f"{flag} {shown}: give all allowed values of {tensor}, each with its own flag, the default first: {flag}"
            f" {tensor.name}=0 {flag} {tensor.name}=1. For a value that never changes use --constant"
        )
    choices = tuple(full) if is_whole else ()
    return SessionConstant(tensor, axis, shape, SessionConstantSpec(default=full[0] if full else (), choices=choices))


def _row(tensor: Tensor, batch: str | int, hints: Hints, flag: str) -> tuple[int | None, tuple[int, ...]]:
    """Returns the batch axis, or None, and the sizes of the other axes."""
    axis: int | None = None
    if tensor.name in hints.batch_axes:
        axis = batch_axis(tensor, hints, lambda: 0)
    elif isinstance(batch, str) and batch in tensor.shape:
        axis = tensor.shape.index(batch)
    rest = [one for place, one in enumerate(tensor.shape) if place != axis]
    if free := [one for one in rest if isinstance(one, str)]:
        raise ExportError(f"{flag} {tensor.name}: axis {free[0]} of {tensor} has no size: give --axis {free[0]}=SIZE")
    return axis, tuple(int(one) for one in rest)
