"""Converts feature vectors to messages and back, without NumPy. Accepts buffers and sequences of numbers."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from carousel._arguments import invalid
from carousel.errors import InvalidArgumentError
from carousel.v1 import inference_pb2 as pb

Vector: TypeAlias = tuple[float, ...]
"""The values of one step, for a model that outputs values."""

_FLOAT_SIZE = 4


class Array(Protocol):
    """An array of numbers with one or two axes, such as NumPy's: any object with a shape and a buffer."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of its axes: [steps, features] or [numbers]."""


Features: TypeAlias = Sequence[Sequence[float]] | Sequence[float] | Array
"""Feature vectors, one a step: [steps, features], or [numbers], the numbers of all steps in one sequence."""


def is_features(value: object) -> bool:
    """Whether a value holds feature vectors, not tokens: floats are features, whole numbers are token ids."""
    if isinstance(value, str | bytes):
        return False
    if hasattr(value, "shape"):
        return len(value.shape) != 1 or _is_of_floats(value)
    return isinstance(value, Sequence) and bool(value) and not isinstance(value[0], str | int)


def steps_message(features: Features, size: int, field: str) -> pb.Tensor:
    """Makes the tensor [steps, features] for one or more steps of a session.

    size: how many numbers a step reads; 0 if not known: then a value with one axis is one step. Raises
    InvalidArgumentError for another shape, and when the numbers do not fill the last step.
    """
    message = tensor_message(features, field)
    if len(message.shape) == 1:
        count = message.shape[0]
        size = size or count
        missing = -count % (size or 1)
        if missing:
            num_steps = (count + missing) // size
            lacking = f"{missing} {'is' if missing == 1 else 'are'} missing"
            raise invalid(
                f"{field} has {count} numbers, but each step reads {size}: {lacking} for {num_steps}"
                f" {'step' if num_steps == 1 else 'steps'} (`carousel.Frames` cuts samples into complete steps)",
                field,
            )
        message.shape[:] = [count // (size or 1), size]
    return message


def tensor_message(features: Features, field: str) -> pb.Tensor:
    """Makes a tensor [steps, features] or [numbers] of 32-bit floats. Raises InvalidArgumentError for another shape."""
    if hasattr(features, "shape"):
        return _of_array(features, field)
    if isinstance(features, bytes | bytearray):
        raise _malformed(field, f"numbers, not {features!r:.60}")
    try:
        items: Sequence[Any] = features if isinstance(features, Sequence) else list(features)
        if items and _is_number(items[0]):
            numbers = floats(items, field)
            return pb.Tensor(shape=[len(numbers)], data=_little_endian(numbers))
        rows = [floats(row, f"{field}[{at}]") for at, row in enumerate(items)]
    except (TypeError, OverflowError):
        raise _malformed(field, f"rows of numbers, not {features!r:.60}") from None
    width = len(rows[0]) if rows else 0
    if any(len(row) != width for row in rows):
        raise _malformed(field, f"rows of one length, not {features!r:.60}")
    return pb.Tensor(shape=[len(rows), width], data=b"".join(map(_little_endian, rows)))


def floats(values: Iterable[Any], field: str) -> array[float]:
    """Returns 32-bit floats. Raises InvalidArgumentError for a finite number that would become infinite; TypeError and
    OverflowError for other values."""
    given = values if isinstance(values, Sequence) else list(values)
    numbers = array("f", given)
    if not math.isfinite(sum(numbers)):  # cheaper than a check of each number
        for at, (number, value) in enumerate(zip(numbers, given, strict=True)):
            if math.isinf(number) and not math.isinf(value):
                raise invalid(f"{field}[{at}] = {value!r:.60} must be in the range of 32-bit floats", f"{field}[{at}]")
    return numbers


def vectors(message: pb.Tensor) -> list[Vector]:
    """The vectors of a tensor [steps, values]."""
    width = message.shape[1] if len(message.shape) > 1 else 1
    numbers = array("f", message.data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return [tuple(numbers[begin : begin + width]) for begin in range(0, len(numbers), width or 1)]


def pieces(message: pb.Tensor) -> list[bytes]:
    """The vectors of a tensor, each as bytes in wire format."""
    size = _FLOAT_SIZE * (message.shape[1] if len(message.shape) > 1 else 1)
    return [message.data[begin : begin + size] for begin in range(0, len(message.data), size)]


def tensor_of(parts: Sequence[bytes]) -> pb.Tensor:
    """Makes a tensor of vectors in wire format: the inverse of `pieces`."""
    return pb.Tensor(shape=[len(parts), len(parts[0]) // _FLOAT_SIZE], data=b"".join(parts))


def _of_array(features: Array, field: str) -> pb.Tensor:
    try:
        view = memoryview(features)  # type: ignore[arg-type]  # Python has no buffer type before 3.12
    except (TypeError, ValueError, BufferError):
        raise _malformed(field, f"an array of numbers with a buffer, such as NumPy's, not {features!r:.60}") from None
    if view.ndim not in (1, 2):
        raise _malformed(field, f"1 axis or 2, not {view.ndim}")
    if view.format in ("f", "<f") and view.c_contiguous and sys.byteorder == "little":
        return pb.Tensor(shape=view.shape, data=view.tobytes())
    try:
        rows: Any = view.tolist()  # nested lists, one level for each axis
    except NotImplementedError:  # memoryview cannot read half floats or text
        raise _malformed(field, f"numbers of 32 or 64 bits, not {features!r:.60}") from None
    return tensor_message(rows, field) if rows else pb.Tensor(shape=view.shape)


def _is_number(value: object) -> bool:
    """Whether a value is one number, not a row. An array's scalar has a shape, but no axes."""
    shape: tuple[int, ...] | None = getattr(value, "shape", None)
    return not hasattr(value, "__iter__") if shape is None else not shape


def _is_of_floats(value: Any) -> bool:
    try:
        return memoryview(value).format.lstrip("<>=@") in ("e", "f", "d")
    except (TypeError, BufferError):  # no buffer
        return False


def _little_endian(numbers: array[float]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _malformed(field: str, expected: str) -> InvalidArgumentError:
    shapes = "[steps, features], or their numbers, [numbers]"
    return invalid(f"{field} must be vectors, one a step, {shapes}: {expected}", field)
