"""Tensors of the wire to vectors and back. Every refusal names the field as the client spells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from carousel.v1 import inference_pb2 as pb
from service.engine.jobs import ITEM_SIZE, Item
from service.errors import EmptySequenceError, InvalidFieldError, quoted
from service.repository.vocabulary import too_many

_PACKED = 2
"""The wire type of bytes, messages and packed numbers."""
LARGEST_WHOLE = 2**24
"""The largest whole number up to which 32-bit floats have all."""
_FEW = 256
"""Numbers that are as fast to append one by one as to parse."""


def packed_floats(message: Message, field_number: int, array: NDArray[Any]) -> None:
    """Appends all numbers of an array to a `repeated float` field of a message that has nothing in it yet but other
    fields. A packed field is the numbers' own bytes: parsing them takes a copy of the memory, not an object a number.
    """
    data = array.astype("<f4", copy=False).tobytes()
    message.MergeFromString(_varint(field_number << 3 | _PACKED) + _varint(len(data)) + data)


def extend_floats(message: Message, name: str, array: NDArray[Any]) -> None:
    """Appends all numbers of an array to the `repeated float` field of that name, the faster way for their number."""
    if array.size <= _FEW:
        getattr(message, name).extend(array.ravel().tolist())
    elif array.size:
        packed_floats(message, message.DESCRIPTOR.fields_by_name[name].number, array)


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def vectors(
    message: pb.Tensor, size: int, *, field: str, limit: int | None = None, setting: str = "max_feed_tokens"
) -> list[Item]:
    """The vectors of a tensor [steps, size]. limit: steps that it may have, by `setting`; None: any number.

    Raises InvalidFieldError for another shape, or data of another length, EmptySequenceError for no step, and
    SequenceTooLongError.
    """
    shape = list(message.shape[:3])
    if len(shape) != 2 or shape[1] != size:
        shown = quoted(shape) if len(message.shape) <= 2 else f"of {len(message.shape)} axes"
        raise InvalidFieldError(f"{field}.shape = {shown} must be [steps, {size}]", field=f"{field}.shape")
    if not shape[0]:
        raise EmptySequenceError(f"{field} is empty: it must have 1 vector or more", field=field)
    if limit is not None and shape[0] > limit:
        raise too_many(f"{shape[0]} vectors", limit, setting, field)
    data, each = message.data, ITEM_SIZE * size
    if len(data) != each * shape[0]:
        raise InvalidFieldError(
            f"{field}.data has {len(data)} bytes, and shape {shape} of 32-bit floats needs {each * shape[0]}",
            field=f"{field}.data",
        )
    return [data[begin : begin + each] for begin in range(0, len(data), each)]


def check_whole(items: Sequence[Item], places: Mapping[int, str], *, field: str, first: int = 0) -> None:
    """Raises InvalidFieldError when an integer input of the model would be given another number than the client's.

    items: vectors; places: where in a vector such inputs have their numbers, and their names, as
    `StepSpec.whole_numbers` has them; first: the place of items[0] in the field.
    """
    if not places or not items:
        return
    numbers = np.frombuffer(b"".join(items), "<f4").reshape(len(items), -1)[:, list(places)]  # type: ignore[arg-type]
    is_whole = (np.abs(numbers) <= LARGEST_WHOLE) & (np.rint(numbers) == numbers)
    if not is_whole.all():
        row, column = np.argwhere(~is_whole)[0]
        name, value = list(places.values())[column], float(numbers[row, column])
        raise InvalidFieldError(
            f"{field}.data: {quoted(name)} of vector {first + row} is {value}: it must be a whole number up to "
            f"{LARGEST_WHOLE}",
            field=f"{field}.data",
        )


def tensor(items: Sequence[Item], size: int) -> pb.Tensor:
    """Vectors as a tensor [steps, size]."""
    return pb.Tensor(shape=[len(items), size], data=b"".join(items))  # type: ignore[arg-type]  # of a model of values
