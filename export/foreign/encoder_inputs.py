"""Tells what an input of a translator's encoder is: the source, its length, a mask over it, or a constant."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np

from export.errors import ExportError
from export.foreign.axes import Hints, Tensor, check_constant
from export.foreign.links import Links, Placed
from export.foreign.wiring import Wiring
from export.proofs.runners import Array

MIN_OPSET = 11
"""The least opset of the nodes that are added to both files."""
WHOLE = ("int64", "int32")
"""The types of token ids."""
_LENGTHS = re.compile(r"len", re.IGNORECASE)
_MASKS = re.compile(r"mask|pad", re.IGNORECASE)


def constants_of(inputs: Mapping[str, Tensor], hints: Hints) -> dict[str, Array]:
    """Returns the constants from flags, with one row. Raises ExportError for values that do not fit."""
    found: dict[str, Array] = {}
    for name, values in hints.constants.items():
        if name not in inputs:
            continue
        tensor = inputs[name]
        count = prod(tensor.of_one_row)
        if len(values) not in (1, count):
            raise ExportError(f"--constant {name} has {len(values)} values, but {tensor} needs {count}")
        check_constant(tensor, values)
        found[name] = np.resize(np.array(values, tensor.dtype), tensor.of_one_row)
    return found


def are_alone(together: Array, alone: Sequence[Array], axes: Sequence[int], *, close: float) -> bool:
    """Whether two rows of one run equal each row run alone.

    axes: the axes that grow with the number of rows; empty: both rows share the output. close: the largest allowed
    difference, absolute or relative.
    """
    if len(axes) > 1:
        return False
    parts = np.split(together, 2, axis=axes[0]) if axes else [together, together]
    return all(
        one.shape == part.shape and np.allclose(one, part, close, close) for one, part in zip(alone, parts, strict=True)
    )


def feature_size_of(source: Tensor) -> int:
    """Returns how many numbers each vector of a source has; 0 for tokens. Raises ExportError for any other source."""
    last = source.shape[-1] if source.shape else 0
    if source.dtype in WHOLE:
        return 0
    if source.dtype != "float32" or not isinstance(last, int):
        raise ExportError(f"the source {source} must be token ids, or vectors of 32-bit floats of a fixed size")
    return last


def are_lengths(tensor: Tensor, others: Sequence[Tensor], links: Links) -> bool:
    """Whether an input is the sources' lengths: a flag says so, or it has one integer a row and a fitting name or
    shape."""
    if links.lengths:
        return tensor.name in links.lengths
    sizes = [axis for axis in tensor.shape if axis != 1]
    has_longer = any(len(one.shape) > len(sizes) for one in others if one is not tensor)
    is_named = _LENGTHS.search(tensor.name) is not None
    return len(sizes) <= 1 and has_longer and tensor.dtype in WHOLE and (is_named or len(tensor.shape) <= 1)


def is_mask(tensor: Tensor, others: Sequence[Tensor], links: Links) -> bool:
    """Whether an input is a mask over the source: a flag says so, or its name or type does."""
    if tensor.name in links.masks:
        return True
    if links.masks or len(others) == 1:
        return False
    whole = [one for one in others if one.dtype in WHOLE]
    return tensor.dtype == "bool" or _MASKS.search(tensor.name) is not None or (len(whole) == 1 and tensor not in whole)


def first_states(wiring: Wiring, taken: Container[str]) -> dict[str, Array]:
    """Returns zeros of one row for the inputs that recurrent nodes start with. taken: inputs with another role."""
    found = {}
    for name, tensor in wiring.inputs.items():
        slots = wiring.starts(name)
        if name not in taken and slots and wiring.is_moved(name) and all(slot.is_recurrent for slot in slots):
            found[name] = np.zeros(tensor.of_one_row, tensor.dtype)
    return found


def placed_mask(tensor: Tensor, source: Placed, file: Path, *, has_fixed_row: bool) -> Placed:
    """Returns a mask's batch and source axes: those of the source, or its only axes without a size."""
    if len(tensor.shape) == len(source.places) - len(source.shape) and isinstance(
        tensor.shape[source.source or 0], str
    ):
        return Placed(tensor, source.rows, source.source, ())
    free = [place for place, axis in enumerate(tensor.shape) if isinstance(axis, str)]
    if not has_fixed_row and source.rows is not None and len(free) == 2:  # rows and tokens
        rows, at = free if source.rows < (source.source or 0) else reversed(free)
        return Placed(tensor, rows, at, (1,) * (len(tensor.shape) - 2))
    if len(free) == 1 and has_fixed_row:
        return Placed(tensor, None, free[0], (1,) * (len(tensor.shape) - 1))
    raise ExportError(
        f"{file.name}: what is {tensor}? A mask has a batch axis and a source axis. If it is constant, use --constant"
        f" {tensor.name}=VALUE"
    )
