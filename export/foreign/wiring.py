"""Tells which inputs and outputs of an ONNX graph are the first and last values of a node's state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import onnx

from export.foreign.flow import Flow, Slot, Value
from export.surgery import copy_of

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
        """Returns the slots whose first value is this input: moved, or computed if no input is moved there."""
        return self._starts[name]

    def is_moved(self, name: str) -> bool:
        """Whether an input's value reaches all of these slots unchanged."""
        return self._moved[name] == self._starts[name]

    def ends(self, name: str) -> frozenset[Slot]:
        """Returns the slots whose last value is in this output; in a sequence of one step, it may be the only value."""
        return self._ends[name]

    def is_last(self, name: str) -> bool:
        """Whether an output has the last values themselves, for a sequence of any length."""
        return bool(self._ends[name]) and self._last[name] == self._ends[name]

    def reached(self, name: str, *, by_moves: bool = False) -> set[str]:
        """Returns the outputs that depend on an input. by_moves: only those that have the input's own values."""
        found = self.flow.reach([(0, name)], ["moves"] if by_moves else ["moves", "computes", "recurs"])
        return {name for name in self.outputs if (0, name) in found}

    def is_used(self, slot: Slot) -> bool:
        """Whether an output depends on a slot's node."""
        own = [one for one in self.flow.slots if one.owner == slot.owner]
        given = [value for one in own for value in (one.final, one.sequence)]
        found = self.flow.reach(given, ["moves", "computes", "recurs"])
        return any((0, name) in found for name in self.outputs)

    def length(self, slot: Slot) -> int | None:
        """Returns how many elements a slot's node reads in one step of the stream; None if unknown.

        Axes without a length count as 1. So a node over the stream's time reads one element, and a node over the
        frequencies of a frame reads as many as there are frequencies.
        """
        place = 1 if slot.is_batch_first else 0
        found = None if slot.source is None else self._inferred.get(slot.source)
        if found is None or place >= len(found.shape.dim) or not found.shape.dim[place].HasField("dim_value"):
            return None
        return found.shape.dim[place].dim_value

    def element_type(self, slot: Slot) -> int:
        """Returns the element type of a slot's node; 32-bit floats if unknown."""
        found = None if slot.source is None else self._inferred.get(slot.source)
        return onnx.TensorProto.FLOAT if found is None else found.elem_type

    def _starting(self, values: set[Value]) -> frozenset[Slot]:
        return frozenset(slot for slot in self.flow.slots if slot.initial in values)

    @cached_property
    def _inferred(self) -> dict[Value, onnx.TypeProto.Tensor]:
        """Types and shapes of values when every axis without a length has length 1; empty if inference fails."""
        model = copy_of(self._model)
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
        except Exception:  # onnx raises its own error classes; without shapes, lengths are unknown
            return {}
        return {
            (number, one.name): one.type.tensor_type
            for number, graph in _numbered(inferred.graph)
            for one in (*graph.input, *graph.value_info, *graph.output)
        }


def may_be(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors may be one state before and after a step: equal types, and equal shapes as far as known."""
    if one.dtype != other.dtype:
        return False
    is_unknown = not other.shape  # some exporters omit the shapes of outputs
    if is_unknown:
        return bool(one.shape)
    return len(one.shape) == len(other.shape) and all(
        left == right or isinstance(left, str) or isinstance(right, str)
        for left, right in zip(one.shape, other.shape, strict=True)
    )


def _numbered(graph: onnx.GraphProto) -> Iterator[tuple[int, onnx.GraphProto]]:
    """Yields a graph and the graphs inside it, with the numbers that `Flow` gives them."""
    waiting = [graph]
    number = 0
    while waiting:
        one = waiting.pop()
        yield number, one
        number += 1
        within = [attribute.g for node in one.node for attribute in node.attribute if attribute.HasField("g")]
        waiting.extend(reversed(within))
