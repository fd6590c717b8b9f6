"""Where the two files of a translator meet: what flags say of it, and where their tensors count rows and the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from export.errors import ExportError, first_line
from export.foreign.axes import Tensor
from export.proofs.runners import Array, session_of


@dataclass(frozen=True, slots=True)
class Joints:
    """What is told by flags. contexts, initial: encoder outputs by decoder input; masks: which inputs of either file
    are masks over the source, and what their values mean, None: to be found; lengths: which are its lengths."""

    contexts: Mapping[str, str] = field(default_factory=dict)
    initial: Mapping[str, str] = field(default_factory=dict)
    masks: Mapping[str, str | None] = field(default_factory=dict)
    lengths: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor, and which axes count rows and the source; None: none does. shape: its other axes; part: of the node
    whose last or first state it is, such as `hidden`; empty: of none."""

    tensor: Tensor
    rows: int | None
    source: int | None
    shape: tuple[int, ...]
    part: str = ""

    @property
    def places(self) -> list[int]:
        """Its axes with the rows first, then the source, then the others."""
        ahead = [axis for axis in (self.rows, self.source) if axis is not None]
        rank = len(self.shape) + len(ahead)
        return [*ahead, *(place for place in range(rank) if place not in ahead)]

    @property
    def perm(self) -> list[int]:
        """Which axis of rows, source and others comes where in the tensor itself."""
        return [self.places.index(place) for place in range(len(self.places))]

    def of_row(self, array: Array) -> Array:
        """One row's own numbers of a tensor of one row, [S, *shape] or [*shape]."""
        turned = array.transpose(self.places)
        return turned[0] if self.rows is not None else turned

    def as_file(self, row: Array) -> Array:
        """A tensor of one row, of what `of_row` gives, or of numbers that are as many."""
        ahead = (row.shape[0],) if self.source is not None else ()
        full = row.reshape(((1,) if self.rows is not None else ()) + ahead + self.shape)
        return np.ascontiguousarray(full.transpose(self.perm))


def without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """Sizes but for those of 1, which change no number."""
    return tuple(size for size in shape if size != 1)


def advice(error: Exception, otherwise: str) -> str:
    """What ONNX Runtime says of a run that it has refused, and what to do. otherwise: that, where it is not the type of
    numbers."""
    told = first_line(error)
    is_of_type = "support" in told or "implementation" in told
    return f"{told}. Export it {'in 32-bit floats' if is_of_type else otherwise}"


class Session:
    """A file that is run as it is. what: names it in errors."""

    def __init__(self, model: onnx.ModelProto, what: str) -> None:
        try:
            self._session = session_of(model)
        except Exception as error:  # ONNX Runtime raises classes of its own
            raise ExportError(f"ONNX Runtime cannot load {what}: {first_line(error)}") from error
        self.outputs: list[str] = [one.name for one in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name. Raises what ONNX Runtime raises."""
        found: list[Array] = self._session.run(self.outputs, dict(feeds))
        return dict(zip(self.outputs, found, strict=True))
