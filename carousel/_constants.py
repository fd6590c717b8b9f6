"""Makes messages of session constants. Without NumPy."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

from carousel._arguments import invalid
from carousel._ports import LARGEST_WHOLE
from carousel.v1 import inference_pb2 as pb

Constants: TypeAlias = Mapping[str, Any]
"""A session's constants by name; each is a number, nested sequences of numbers, or an array such as NumPy's."""


def fill_constants(messages: MutableMapping[str, pb.Tensor], constants: Constants | None, field: str) -> None:
    """Adds constants to a request. Raises InvalidArgumentError for values that are not numbers."""
    if constants is not None and not isinstance(constants, Mapping):
        raise invalid(f"{field} must be a dict of values by name, not {constants!r:.60}", field)
    for name, value in (constants or {}).items():
        if not isinstance(name, str):
            raise invalid(f"{field} has the name {name!r:.60}: it must be a string", field)
        shape: list[int] = []
        numbers = array("f")
        given = memoryview(value).tolist() if getattr(value, "shape", ()) else value
        try:
            _collect(given, shape, numbers, 0)
        except (TypeError, ValueError, OverflowError):
            raise invalid(
                f"{field}[{name!r}] must be numbers that fit 32-bit floats (whole numbers up to {LARGEST_WHOLE}), in"
                f" rows of equal length, not {value!r:.60}",
                f"{field}[{name!r}]",
            ) from None
        if sys.byteorder == "big":
            numbers.byteswap()
        messages[name].CopyFrom(pb.Tensor(shape=shape, data=numbers.tobytes()))


def _collect(value: Any, shape: list[int], numbers: array[float], depth: int) -> None:
    """Appends the numbers of nested sequences to `numbers`, and the length at each depth to `shape`. Raises ValueError
    for lengths that differ, TypeError for values that are not numbers."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if depth == len(shape) and not numbers:
            shape.append(len(value))
        if depth >= len(shape) or len(value) != shape[depth]:
            raise ValueError(value)
        for one in value:
            _collect(one, shape, numbers, depth + 1)
        return
    if depth != len(shape) or (isinstance(value, int) and abs(value) > LARGEST_WHOLE):
        raise ValueError(value)
    numbers.append(value)
    if math.isinf(numbers[-1]) and not math.isinf(value):
        raise ValueError(value)  # too large for a 32-bit float
