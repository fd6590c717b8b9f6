"""Copies arrays of numbers into messages without changing a bit."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message
from numpy.typing import NDArray

_PACKED = 2
"""The wire type of bytes, messages and packed numbers."""
_FEW = 256
"""Up to this count, appending numbers one by one is as fast as parsing them."""


def packed_floats(message: Message, field_number: int, array: NDArray[Any]) -> None:
    """Appends all numbers of an array to a `repeated float` field that is still empty. Other fields may be set. A
    packed field consists of the bytes of its numbers: parsing it copies memory, and makes no object for each number."""
    data = array.astype("<f4", copy=False).tobytes()
    message.MergeFromString(_varint(field_number << 3 | _PACKED) + _varint(len(data)) + data)


def extend_floats(message: Message, name: str, array: NDArray[Any]) -> None:
    """Appends all numbers of an array to the named `repeated float` field, in the way that is faster for their
    count."""
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
