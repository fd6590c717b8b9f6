"""Converts tensors on the wire to vectors of features and back. Errors name the field as the client spells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from carousel.v1 import inference_pb2 as pb
from service.engine.jobs import ITEM_SIZE, Item
from service.errors import EmptySequenceError, InvalidFieldError, quoted
from service.repository.vocabulary import too_many

LARGEST_WHOLE = 2**24
"""32-bit floats can hold every whole number up to this one."""


def items_of(
    message: pb.Tensor, size: int, model: str, *, field: str, limit: int | None = None, setting: str = "max_feed_tokens"
) -> list[Item]:
    """Returns the vectors of a tensor [steps, size], or of a tensor [numbers] that has the vectors one after the other.

    model: its name, for errors; limit: the most steps of the tensor, set by `setting`; None: no limit.

    Raises InvalidFieldError for another shape, for numbers that do not fill the last vector, and for data of another
    length; EmptySequenceError for no steps; SequenceTooLongError for too many.
    """
    shape = list(message.shape[:3])
    num_steps = _num_steps(shape, size, model, field=field, num_axes=len(message.shape))
    if limit is not None and num_steps > limit:
        raise too_many(f"{num_steps} vectors", limit, setting, field)
    check_data(message.data, size * num_steps, shape, field=field)
    data, each = message.data, ITEM_SIZE * size
    return [data[begin : begin + each] for begin in range(0, len(data), each)]


def check_data(data: bytes, count: int, shape: Sequence[int], *, field: str) -> None:
    """Raises InvalidFieldError unless the data has `count` numbers. shape: the shape of the tensor, for the error."""
    if len(data) != ITEM_SIZE * count:
        raise InvalidFieldError(
            f"{field}.data has {len(data)} bytes, and shape {shape} of 32-bit floats needs {ITEM_SIZE * count}",
            field=f"{field}.data",
        )


def are_whole(numbers: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns which numbers are whole, and not above LARGEST_WHOLE in size."""
    found: NDArray[np.bool_] = (np.abs(numbers) <= LARGEST_WHOLE) & (np.rint(numbers) == numbers)
    return found


def _num_steps(shape: list[int], size: int, model: str, *, field: str, num_axes: int) -> int:
    """Returns how many vectors a tensor has. shape: its first axes. Raises InvalidFieldError and EmptySequenceError."""
    is_flat = num_axes == 1
    if not is_flat and (num_axes != 2 or shape[1] != size):
        shown = quoted(shape) if num_axes <= 2 else f"of {num_axes} axes"
        raise InvalidFieldError(f"{field}.shape = {shown} must be [steps, {size}]", field=f"{field}.shape")
    if not shape[0]:
        raise EmptySequenceError(f"{field} is empty: it must have 1 vector or more", field=field)
    if not is_flat:
        return shape[0]
    missing = -shape[0] % size
    num_steps = (shape[0] + missing) // size
    if missing:
        raise InvalidFieldError(
            f"{field} has {shape[0]} numbers, but each step of {model} reads {size}: {missing}"
            f" {'is' if missing == 1 else 'are'} missing for {num_steps} {'step' if num_steps == 1 else 'steps'}",
            field=field,
        )
    return num_steps


def check_whole(items: Sequence[Item], places: Mapping[int, str], *, field: str, first: int = 0) -> None:
    """Raises InvalidFieldError if a number for an integer input is not whole, so that the model would read another
    number.

    items: vectors; places: the numbers of a vector that integer inputs read, and the names of these inputs, as in
    `StepSpec.whole_numbers`; first: the place of items[0] in the field.
    """
    if not places or not items:
        return
    numbers = np.frombuffer(b"".join(items), "<f4").reshape(len(items), -1)[:, list(places)]  # type: ignore[arg-type]
    is_whole = are_whole(numbers)
    if not is_whole.all():
        row, column = np.argwhere(~is_whole)[0]
        name, value = list(places.values())[column], float(numbers[row, column])
        raise InvalidFieldError(
            f"{field}.data: {quoted(name)} of vector {first + row} is {value}: it must be a whole number up to "
            f"{LARGEST_WHOLE}",
            field=f"{field}.data",
        )


def tensor(items: Sequence[Item], size: int) -> pb.Tensor:
    """Returns vectors as a tensor [steps, size]."""
    return pb.Tensor(shape=[len(items), size], data=b"".join(items))  # type: ignore[arg-type]  # the items are vectors
