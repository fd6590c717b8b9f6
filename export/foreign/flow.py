"""Follows values through an ONNX graph, from inputs to outputs, also inside `If` branches, `Loop` and `Scan` bodies.

Runs nothing, and ignores what names suggest.

1. Operators that only move values (`Reshape`, `Concat`, `Slice`, ...) make edges of kind MOVES.
2. Other operators make edges of kind COMPUTES. Operators that only read a shape make none.
3. A recurrent node makes edges of kind RECURS from its inputs to its outputs, and one slot for each state tensor. The
   variables that a `Loop` or a `Scan` carries are slots too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import onnx
import onnx.inliner

Value = tuple[int, str]
"""A value: the number of the graph that defines it (0: the file's own), and its name there."""
Kind = Literal["moves", "computes", "recurs"]

RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
_PARTS = {5: "hidden", 6: "cell"}
"""For each input of a recurrent node that is a first state value: the part of the state."""
_MOVED = {
    **dict.fromkeys(("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Gather"), 1),
    **dict.fromkeys(("Cast", "CastLike", "Flatten", "Expand", "Tile", "Pad", "Dropout", "SplitToSequence"), 1),
    **dict.fromkeys(("SequenceAt", "ConcatFromSequence"), 1),
    "SequenceInsert": 2,
    **dict.fromkeys(("Concat", "SequenceConstruct"), 1 << 16),
}
"""How many of an operator's first inputs it moves to its outputs."""
_SCATTERS = ("ScatterND", "ScatterElements")
_OF_SHAPES = ("Shape", "Size", "ConstantOfShape", "EyeLike", "RandomNormalLike", "RandomUniformLike")


@dataclass(frozen=True, slots=True)
class Slot:
    """A state tensor of one node.

    initial: its value before the node runs; None if the node has no such input. final: its value afterwards; None if it
    is not an output. sequence: its values after every step. is_in_loop: whether the node is in the body of a `Loop` or
    `Scan`.
    """

    op_type: str
    node_name: str
    graph: int
    node: int
    """The node's place in its graph."""
    is_in_loop: bool
    part: str
    initial: Value | None
    final: Value | None
    sequence: Value | None = None
    source: Value | None = None
    """The node's input at each step."""
    hidden_size: int = 0
    direction: str = "forward"
    is_batch_first: bool = False

    @property
    def is_recurrent(self) -> bool:
        """Whether it belongs to an LSTM, GRU or RNN node."""
        return self.op_type in RECURRENT

    @property
    def owner(self) -> tuple[int, int]:
        """Its node: the number of the graph, and the node's place there."""
        return self.graph, self.node

    def __str__(self) -> str:
        return f"{self.op_type} {self.node_name}"


class _Found(NamedTuple):
    """A node, the number of its graph and its place there. inputs, outputs: its values; None for omitted ones."""

    node: onnx.NodeProto
    graph: int
    place: int
    inputs: Sequence[Value | None]
    outputs: Sequence[Value | None]
    is_in_loop: bool


class Flow:
    """The edges and slots of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        self.slots: list[Slot] = []
        self._edges: dict[Kind, dict[Value, list[Value]]] = {"moves": {}, "computes": {}, "recurs": {}}
        self._num_graphs = 0
        self._constants: set[Value] = set()
        self._graph(model.graph, (), is_in_loop=False)

    def reach(self, starts: Iterable[Value | None], kinds: Collection[Kind]) -> set[Value]:
        """Returns all values that depend on `starts` along edges of `kinds`, and `starts` themselves."""
        found = {start for start in starts if start is not None}
        waiting = list(found)
        while waiting:
            value = waiting.pop()
            for kind in kinds:
                for following in self._edges[kind].get(value, ()):
                    if following not in found:
                        found.add(following)
                        waiting.append(following)
        return found

    def _graph(self, graph: onnx.GraphProto, outer: _Scopes, *, is_in_loop: bool) -> _Scopes:
        """Adds a graph's edges. Returns the scopes inside it."""
        number = self._num_graphs
        self._num_graphs += 1
        scopes = (*outer, (number, _names(graph)))
        self._constants |= {(number, one.name) for one in graph.initializer}
        for place, node in enumerate(graph.node):
            if node.op_type == "Constant":
                self._constants.add((number, node.output[0]))
            inputs = [_resolve(name, scopes) for name in node.input]
            outputs = [_resolve(name, scopes) for name in node.output]
            self._node(_Found(node, number, place, inputs, outputs, is_in_loop), scopes)
        return scopes

    def _node(self, found: _Found, scopes: _Scopes) -> None:
        node, inputs, outputs = found.node, found.inputs, found.outputs
        bodies = {one.name: one.g for one in node.attribute if one.HasField("g")}
        if node.op_type in RECURRENT:
            self._edge("recurs", [inputs[0], *inputs[5:7]], outputs)
            self._recurrent(found)
        elif node.op_type == "If":
            self._edge("computes", inputs[:1], outputs)
            for body in bodies.values():
                inner = self._graph(body, scopes, is_in_loop=found.is_in_loop)
                self._move([_resolve(one.name, inner) for one in body.output], outputs)
        elif node.op_type in ("Loop", "Scan"):
            self._loop(found, scopes)
        elif node.op_type not in _OF_SHAPES:
            num_moved = _MOVED.get(node.op_type, 0)
            if node.op_type == "Gather" and inputs[1] not in self._constants:
                num_moved = 0
            moved = inputs[::2] if node.op_type in _SCATTERS else inputs[:num_moved]
            self._edge("moves", moved, outputs)
            self._edge("computes", [one for one in inputs if one not in moved], outputs)
            for body in bodies.values():
                self._graph(body, scopes, is_in_loop=True)

    def _recurrent(self, found: _Found) -> None:
        node, inputs, outputs = found.node, found.inputs, found.outputs
        attributes = {one.name: one for one in node.attribute}
        direction = attributes["direction"].s.decode() if "direction" in attributes else "forward"
        for at, part in _PARTS.items():
            if part == "cell" and not node.op_type.endswith("LSTM"):
                continue
            self.slots.append(
                Slot(
                    node.op_type.removeprefix("DynamicQuantize"),
                    _called(node),
                    found.graph,
                    found.place,
                    found.is_in_loop,
                    part,
                    _at(inputs, at),
                    _at(outputs, at - 4),
                    _at(outputs, 0) if part == "hidden" else None,
                    _at(inputs, 0),
                    attributes["hidden_size"].i if "hidden_size" in attributes else 0,
                    direction,
                    bool(attributes["layout"].i) if "layout" in attributes else False,
                )
            )

    def _loop(self, found: _Found, scopes: _Scopes) -> None:
        """Adds a `Loop` or a `Scan`: its body's edges, and a slot for each variable that it carries."""
        node, inputs, outputs = found.node, found.inputs, found.outputs
        attributes = {one.name: one for one in node.attribute}
        body = attributes["body"].g
        inner = self._graph(body, scopes, is_in_loop=True)
        into = [_resolve(one.name, inner) for one in body.input]
        out = [_resolve(one.name, inner) for one in body.output]
        if node.op_type == "Loop":  # inputs: trip count, condition, carried; the body returns a condition first
            num_carried, inputs, into, out = len(inputs) - 2, inputs[2:], into[2:], out[1:]
        else:
            num_carried = len(inputs) - attributes["num_scan_inputs"].i
        self._move(inputs, into)
        self._move(out, outputs)
        self._move(out[:num_carried], into)
        for at in range(num_carried):
            self.slots.append(
                Slot(
                    node.op_type,
                    _called(node),
                    found.graph,
                    found.place,
                    found.is_in_loop,
                    f"{at + 1}. carried",
                    _at(inputs, at),
                    _at(outputs, at),
                )
            )

    def _move(self, before: Sequence[Value | None], after: Sequence[Value | None]) -> None:
        for one, other in zip(before, after, strict=False):  # values past the shorter side are not carried
            self._edge("moves", [one], [other])

    def _edge(self, kind: Kind, before: Iterable[Value | None], after: Iterable[Value | None]) -> None:
        following = [value for value in after if value is not None]
        for value in before:
            if value is not None:
                self._edges[kind].setdefault(value, []).extend(following)


_Scopes = tuple[tuple[int, set[str]], ...]
"""The graphs that contain a node, the innermost last: their numbers, and the names that they define."""


def _names(graph: onnx.GraphProto) -> set[str]:
    names = {one.name for one in graph.input} | {one.name for one in graph.initializer}
    names |= {one.values.name for one in graph.sparse_initializer}
    return names | {name for node in graph.node for name in node.output}


def _resolve(name: str, scopes: _Scopes) -> Value | None:
    """Returns the value with that name; None for an omitted optional input."""
    if not name:
        return None
    return next(((number, name) for number, names in reversed(scopes) if name in names), (0, name))


def _at(values: Sequence[Value | None], place: int) -> Value | None:
    return values[place] if place < len(values) else None


def _called(node: onnx.NodeProto) -> str:
    return node.name or f"(without a name, gives {next(filter(None, node.output), 'nothing')})"
