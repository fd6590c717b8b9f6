"""What an ONNX graph says of a file's inputs and outputs: which begin a state of a node, and which end it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import onnx

from export.foreign.flow import Flow, Slot, Value

if TYPE_CHECKING:
    from export.foreign.axes import Tensor


class Wiring:
    """The slots of a graph, by its inputs and outputs."""

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.flow = Flow(model)
        self._model = model
        by_moves = {name: self.flow.reach([(0, name)], ["moves"]) for name in inputs}
        by_sums = {name: self.flow.reach([(0, name)], ["moves", "computes"]) for name in inputs}
        self._moved = {name: self._starting(values) for name, values in by_moves.items()}
        begun = frozenset[Slot]().union(*self._moved.values())
        self._starts = {name: self._moved[name] | (self._starting(by_sums[name]) - begun) for name in inputs}
        self._last: dict[str, frozenset[Slot]] = dict.fromkeys(outputs, frozenset())
        self._ends = dict(self._last)
        for slot in self.flow.slots:
            last = self.flow.reach([slot.final], ["moves"])
            after = self.flow.reach([slot.final, slot.sequence], ["moves"])
            if not any((0, name) in after for name in outputs):
                after = self.flow.reach([slot.final, slot.sequence], ["moves", "computes"])
            for name in outputs:
                if (0, name) in last:
                    self._last[name] |= {slot}
                if (0, name) in after:
                    self._ends[name] |= {slot}

    def starts(self, name: str) -> frozenset[Slot]:
        """The slots whose first value an input is: moved, or computed where no input is moved there."""
        return self._starts[name]

    def is_moved(self, name: str) -> bool:
        """Whether an input is moved to each of them as it is."""
        return self._moved[name] == self._starts[name]

    def ends(self, name: str) -> frozenset[Slot]:
        """The slots whose last value an output has, or, in a sequence of one step, whose only one."""
        return self._ends[name]

    def is_last(self, name: str) -> bool:
        """Whether an output has the last values themselves, however long the sequence is."""
        return bool(self._ends[name]) and self._last[name] == self._ends[name]

    def reached(self, name: str, *, by_moves: bool = False) -> set[str]:
        """The outputs that come of an input; by_moves: that have its own values."""
        found = self.flow.reach([(0, name)], ["moves"] if by_moves else ["moves", "computes", "recurs"])
        return {name for name in self.outputs if (0, name) in found}

    def is_used(self, slot: Slot) -> bool:
        """Whether any output depends on a slot's node."""
        own = [one for one in self.flow.slots if one.owner == slot.owner]
        given = [value for one in own for value in (one.final, one.sequence)]
        found = self.flow.reach(given, ["moves", "computes", "recurs"])
        return any((0, name) in found for name in self.outputs)

    def length(self, slot: Slot) -> int | None:
        """How many elements its node reads in one step of the stream, None when that is not known.

        Axes without a length are taken to be 1: a node over the stream's time reads one, and a node over the
        frequencies of a frame reads as many as these are.
        """
        place = 1 if slot.is_batch_first else 0
        found = None if slot.source is None else self._inferred.get(slot.source)
        if found is None or place >= len(found.shape.dim) or not found.shape.dim[place].HasField("dim_value"):
            return None
        return found.shape.dim[place].dim_value

    def element_type(self, slot: Slot) -> int:
        """The type of its node's numbers: 32-bit floats where it is not known."""
        found = None if slot.source is None else self._inferred.get(slot.source)
        return onnx.TensorProto.FLOAT if found is None else found.elem_type

    def _starting(self, values: set[Value]) -> frozenset[Slot]:
        return frozenset(slot for slot in self.flow.slots if slot.initial in values)

    @cached_property
    def _inferred(self) -> dict[Value, onnx.TypeProto.Tensor]:
        """The types and shapes of values when every axis without a length has length 1."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        for one in model.graph.input:
            if one.name in self.inputs:
                for dim, axis in zip(one.type.tensor_type.shape.dim, self.inputs[one.name].shape, strict=True):
                    dim.dim_value = axis if isinstance(axis, int) else 1
        for one in model.graph.output:
            one.type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception:  # onnx raises classes of its own, and what is not known is None
            return {}
        return {
            (number, one.name): one.type.tensor_type
            for number, graph in _numbered(inferred.graph)
            for one in (*graph.input, *graph.value_info, *graph.output)
        }


def may_be(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors may be one state before and after: of one type, and of one shape as far as it is known."""
    if one.dtype != other.dtype:
        return False
    is_unknown = not other.shape  # some exporters leave out the shapes of outputs
    if is_unknown:
        return bool(one.shape)
    return len(one.shape) == len(other.shape) and all(
        left == right or isinstance(left, str) or isinstance(right, str)
        for left, right in zip(one.shape, other.shape, strict=True)
    )


def _numbered(graph: onnx.GraphProto) -> Iterator[tuple[int, onnx.GraphProto]]:
    """A graph and those within it, in the order in which `Flow` numbers them."""
    waiting = [graph]
    number = 0
    while waiting:
        one = waiting.pop()
        yield number, one
        number += 1
        within = [attribute.g for node in one.node for attribute in node.attribute if attribute.HasField("g")]
        waiting.extend(reversed(within))
