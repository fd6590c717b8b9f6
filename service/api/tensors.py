"""Tensors of the wire to vectors and back. Every refusal names the field as the client spells it."""

from __future__ import annotations

from collections.abc import Sequence

from carousel.v1 import inference_pb2 as pb
from service.engine.items import ITEM_SIZE, Item
from service.errors import EmptySequenceError, InvalidFieldError


def vectors(message: pb.Tensor, size: int, *, field: str) -> list[Item]:
    """The vectors of a tensor [steps, size]. Raises InvalidFieldError for another shape, or data of another length, and
    EmptySequenceError for none."""
    shape = list(message.shape)
    if len(shape) != 2 or shape[1] != size:
        raise InvalidFieldError(f"{field}.shape = {shape} must be [steps, {size}]", field=f"{field}.shape")
    if not shape[0]:
        raise EmptySequenceError(f"{field} is empty: it must have 1 step or more", field=field)
    data, each = message.data, ITEM_SIZE * size
    if len(data) != each * shape[0]:
        raise InvalidFieldError(
            f"{field}.data has {len(data)} bytes, and shape {shape} of 32-bit floats needs {each * shape[0]}",
            field=f"{field}.data",
        )
    return [data[begin : begin + each] for begin in range(0, len(data), each)]


def tensor(items: Sequence[Item], size: int) -> pb.Tensor:
    """Vectors as a tensor [steps, size]."""
    return pb.Tensor(shape=[len(items), size], data=b"".join(items))  # type: ignore[arg-type]  # of a model of values
