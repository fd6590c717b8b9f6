"""Converts vectors of features to messages and back, without NumPy: from buffers, or from sequences of numbers."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from carousel.errors import InvalidArgumentError
from carousel.v1 import inference_pb2 as pb

Vector: TypeAlias = tuple[float, ...]
"""The values of one step, of a model that gives values."""

_FLOAT_SIZE = 4


class Array(Protocol):
    """An array of numbers of two axes, such as NumPy's: anything with a shape and a buffer."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes: [steps, features]."""


Features: TypeAlias = Sequence[Sequence[float]] | Array
"""Vectors of features, one a step: [steps, features]."""


def is_features(value: object) -> bool:
    """Whether a value is vectors rather than tokens."""
    if isinstance(value, str | bytes):
        return False
    if hasattr(value, "shape"):
        return len(value.shape) != 1
    return isinstance(value, Sequence) and bool(value) and not isinstance(value[0], str | int)


def tensor_message(features: Features, field: str) -> pb.Tensor:
    """A tensor [steps, features] of 32-bit floats. Raises InvalidArgumentError for another form."""
    if hasattr(features, "shape"):
        return _of_array(features, field)
    try:
        rows = [array("f", row) for row in features]
    except TypeError:
        raise _malformed(field, "rows of numbers") from None
    width = len(rows[0]) if rows else 0
    if any(len(row) != width for row in rows):
        raise _malformed(field, "rows of one length")
    return pb.Tensor(shape=[len(rows), width], data=b"".join(map(_little_endian, rows)))


def vectors(message: pb.Tensor) -> list[Vector]:
    """The vectors of a tensor [steps, values]."""
    width = message.shape[1] if len(message.shape) > 1 else 1
    numbers = array("f", message.data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return [tuple(numbers[begin : begin + width]) for begin in range(0, len(numbers), width or 1)]


def pieces(message: pb.Tensor) -> list[bytes]:
    """The vectors of a tensor as they are on the wire."""
    size = _FLOAT_SIZE * (message.shape[1] if len(message.shape) > 1 else 1)
    return [message.data[begin : begin + size] for begin in range(0, len(message.data), size)]


def joined(parts: Sequence[bytes]) -> pb.Tensor:
    """The tensor of such vectors."""
    return pb.Tensor(shape=[len(parts), len(parts[0]) // _FLOAT_SIZE], data=b"".join(parts))


def _of_array(features: Array, field: str) -> pb.Tensor:
    view = memoryview(features)  # type: ignore[arg-type]  # the protocol of buffers has no type before Python 3.12
    if view.ndim != 2:
        raise _malformed(field, f"2 axes, not {view.ndim}")
    if view.format in ("f", "<f") and view.c_contiguous and sys.byteorder == "little":
        return pb.Tensor(shape=view.shape, data=view.tobytes())
    rows: Any = view.tolist()  # nested, of two axes
    return tensor_message(rows, field)


def _little_endian(numbers: array[float]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _malformed(field: str, expected: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field} must be vectors, one a step, [steps, features]: {expected}", field=field)
