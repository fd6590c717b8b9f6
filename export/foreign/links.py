"""Connects the two files of a translator: what flags say about it, and batch and source axes of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from export.errors import first_line
from export.foreign.axes import Tensor
from export.proofs.runners import Array, loaded


@dataclass(frozen=True, slots=True)
class Links:
    """What flags say.

    contexts, initial: the encoder's outputs by the decoder's input. masks: inputs of either file that are masks over
    the source, with the meaning of their values; None: found by running. lengths: inputs that are the source's length.
    """

    contexts: Mapping[str, str] = field(default_factory=dict)
    initial: Mapping[str, str] = field(default_factory=dict)
    masks: Mapping[str, str | None] = field(default_factory=dict)
    lengths: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor with its batch and source axes; None: it has none.

    shape: its other axes. part: the part of a recurrent node's state that it is, such as `hidden`; empty: it is none.
    """

    tensor: Tensor
    rows: int | None
    source: int | None
    shape: tuple[int, ...]
    part: str = ""

    @property
    def places(self) -> list[int]:
        """Its axes in the order rows, source, others."""
        ahead = [axis for axis in (self.rows, self.source) if axis is not None]
        rank = len(self.shape) + len(ahead)
        return [*ahead, *(place for place in range(rank) if place not in ahead)]

    @property
    def perm(self) -> list[int]:
        """The permutation from that order back to the tensor's own."""
        return [self.places.index(place) for place in range(len(self.places))]

    def of_row(self, array: Array) -> Array:
        """Returns one row's numbers, [S, *shape] or [*shape], of a tensor with one row."""
        turned = array.transpose(self.places)
        return turned[0] if self.rows is not None else turned

    def as_file(self, row: Array) -> Array:
        """Returns a tensor with one row, in the file's layout, from the result of `of_row` or as many numbers."""
        ahead = (row.shape[0],) if self.source is not None else ()
        full = row.reshape(((1,) if self.rows is not None else ()) + ahead + self.shape)
        return np.ascontiguousarray(full.transpose(self.perm))


def without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the sizes that are not 1; sizes of 1 do not change the number of elements."""
    return tuple(size for size in shape if size != 1)


def advice(error: Exception, otherwise: str) -> str:
    """Returns ONNX Runtime's message about a failed run, and what to do.

    otherwise: how to export the file, if the cause is not the type of its numbers.
    """
    reason = first_line(error)
    is_of_type = "support" in reason or "implementation" in reason
    return f"{reason}. Export it {'in 32-bit floats' if is_of_type else otherwise}"


class Session:
    """Runs a file as it is. what: the file's name in errors. The constructor raises ExportError."""

    def __init__(self, model: onnx.ModelProto, what: str) -> None:
        self._session = loaded(model, what)
        self.outputs: list[str] = [one.name for one in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Returns all outputs by name. Raises what ONNX Runtime raises."""
        found: list[Array] = self._session.run(self.outputs, dict(feeds))
        return dict(zip(self.outputs, found, strict=True))
