"""Writes one step of each recurrent operator as plain operators, with its gates and states as outputs.

This unrolls an operator of ONNX. `models.recurrent.unroll` runs a cell of PyTorch over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.errors import ExportError
from export.surgery import RECURRENT, Attribute, Writer, copy_of

_GATES_OF_SCAN = ("input_gate", "forget_gate", "candidate", "output_gate")
"""The gates of a projected layer, in PyTorch's order."""


@dataclass(slots=True)
class _Layer:
    """An operator's node with its attributes. size: number of units."""

    node: onnx.NodeProto
    size: int
    attributes: dict[str, object] = field(default_factory=dict)


class Unroller(Writer):
    """Rewrites the nodes of a step graph for one step. output_sizes: the size of each of the trace's outputs."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__(graph, "trace/")
        self._weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._num_layers = 0
        self.written: list[onnx.NodeProto] = []
        self.output_sizes: dict[str, int | str] = {}
        self.constant("zero", np.array([0], np.int64))
        self.constant("one", np.array([1], np.int64))

    def node(self, op_type: str, inputs: Sequence[str], *outputs: str, **attributes: Attribute) -> None:
        """Adds a node like `Writer.node`, but to `written` instead of the graph."""
        super().node(op_type, inputs, *outputs, **attributes)
        self.written.append(self.graph.node.pop())

    def take(self, node: onnx.NodeProto) -> None:
        """Writes a recurrent node as plain operators, and any other node unchanged."""
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if attributes.get("layout") == 0:  # 0 is the default: time first
            del attributes["layout"]
        if node.op_type in RECURRENT and attributes.pop("direction", b"forward") == b"forward":
            size = attributes.pop("hidden_size", None)
            if self._weights[node.input[2]].dtype != np.float32:
                kind = self._weights[node.input[2]].dtype
                raise ExportError(
                    f"its {node.op_type} {node.name!r} computes in {kind}, but a trace graph computes in float32"
                )
            layer = _Layer(node, size if isinstance(size, int) else self._weights[node.input[2]].shape[2], attributes)
            getattr(self, f"_{node.op_type.lower()}")(layer)
            self._num_layers += 1
        elif node.op_type == "Scan" and _is_layer(node):
            self._scan(node)
            self._num_layers += 1
        else:
            self.written.append(node)

    def add_attention(self) -> None:
        """Adds an output for each attention: its weights over the source, which add up to 1."""
        producers = {name: node for node in self.written for name in node.output}
        for node in list(self.written):
            if node.op_type != "Div":
                continue
            products = [producers.get(name) for name in node.input]
            if any(product is None or product.op_type != "MatMul" for product in products):
                continue
            weights = {product.input[1] for product in products if product is not None}
            source = producers.get(next(iter(weights)))
            if len(weights) == 1 and source is not None and source.op_type == "Exp":
                name = f"attention{sum(one.startswith('attention') for one in self.output_sizes) or ''}"
                self.node("Div", [source.output[0], node.input[1]], f"trace/{name}/weights")  # [B, 1, S, 1]
                last = self.constant(f"{name}/last", np.array([3], np.int64))
                self.node("Squeeze", [f"trace/{name}/weights", last], f"trace/{name}")
                self.output_sizes[name] = "source"

    def _own(self, name: str) -> str:
        return f"trace/layer{self._num_layers}/{name}"

    def _add_output(self, name: str, value: str, size: int) -> None:
        """Adds `value` [B, H] to the trace's outputs as [B, 1, H].

        name: as in `models.cells.Cell.gates`. `carousel inspect` draws names that end in `_gate` from 0 to 1.
        """
        output = f"layer{self._num_layers}.{name}"
        self.node("Unsqueeze", [value, "trace/one"], f"trace/{output}")
        self.output_sizes[output] = size

    def _state(self, layer: _Layer, index: int, name: str) -> str:
        """Returns the operator's initial state, [B, H]. Raises ExportError when the node has no such input."""
        given = layer.node.input[index] if len(layer.node.input) > index else ""
        if not given:
            raise ExportError(
                f"the operator {layer.node.name} has no initial state input, so it starts at zero in every step"
            )
        self.node("Squeeze", [given, "trace/zero"], self._own(f"before/{name}"))
        return self._own(f"before/{name}")

    def _products(self, layer: _Layer, hidden: str, num_gates: int) -> tuple[list[str], list[str]]:
        """Returns [B, H] for each gate in the operator's order: W x with half of the bias, R h with the other half."""
        node, size = layer.node, layer.size
        self.node("Squeeze", [node.input[0], "trace/zero"], self._own("x"))
        bias = (
            self._weights[node.input[3]][0]
            if len(node.input) > 3 and node.input[3]
            else np.zeros(2 * num_gates * size, np.float32)
        )
        pieces = []
        for part, vector, weights, half in (
            ("of_x", self._own("x"), node.input[1], bias[: num_gates * size]),
            ("of_h", hidden, node.input[2], bias[num_gates * size :]),
        ):
            self.node("Squeeze", [weights, "trace/zero"], self._own(f"{part}/weights"))
            constant = self.constant(self._own(f"{part}/bias"), np.ascontiguousarray(half))
            self.node("Gemm", [vector, self._own(f"{part}/weights"), constant], self._own(part), transB=1)
            names = [self._own(f"{part}/{gate}") for gate in range(num_gates)]
            if num_gates == 1:
                self.node("Identity", [self._own(part)], names[0])
            else:
                self.node("Split", [self._own(part)], *names, axis=1, num_outputs=num_gates)
            pieces.append(names)
        return pieces[0], pieces[1]

    def _end(self, layer: _Layer, *states: str) -> None:
        """Writes the operator's own outputs: the step's output [1, 1, B, H], and the states after it [1, B, H]."""
        for output, state in zip(layer.node.output[1:], states, strict=False):
            if output:
                self.node("Unsqueeze", [state, "trace/zero"], output)
        if layer.node.output[0]:
            both = self.constant(self._own("front"), np.array([0, 1], np.int64))
            self.node("Unsqueeze", [states[0], both], layer.node.output[0])

    def _sum(self, name: str, *terms: str) -> str:
        self.node("Sum", terms, self._own(name))
        return self._own(name)

    def _lstm(self, layer: _Layer) -> None:
        is_coupled = bool(layer.attributes.pop("input_forget", 0))
        if layer.attributes:
            raise ExportError(
                f"the LSTM {layer.node.name} has {min(layer.attributes)}, which a trace graph does not support"
            )
        hidden, cell = self._state(layer, 5, "hidden"), self._state(layer, 6, "cell")
        of_x, of_h = self._products(layer, hidden, 4)  # i, o, f, c
        peepholes = layer.node.input[7] if len(layer.node.input) > 7 else ""
        seen: list[list[str]] = [[], [], []]
        if peepholes:
            for place, vector in enumerate(self._weights[peepholes][0].reshape(3, -1)):
                seen[place].append(self.constant(self._own(f"peephole/{place}"), vector))

        def gate(name: str, place: int, of_cell: str) -> str:
            terms = [of_x[place], of_h[place]]
            for vector in seen[place]:
                self.node("Mul", [vector, of_cell], self._own(f"{name}/peeped"))
                terms.append(self._own(f"{name}/peeped"))
            self.node("Sigmoid", [self._sum(f"{name}/sum", *terms)], self._own(name))
            return self._own(name)

        admit = gate("input_gate", 0, cell)
        if is_coupled:
            forget, unit = self._own("forget_gate"), self.constant(self._own("unit"), np.array(1, np.float32))
            self.node("Sub", [unit, admit], forget)
        else:
            forget = gate("forget_gate", 2, cell)
        self.node("Tanh", [self._sum("candidate/sum", of_x[3], of_h[3])], self._own("candidate"))
        self.node("Mul", [forget, cell], self._own("kept"))
        self.node("Mul", [admit, self._own("candidate")], self._own("written"))
        self.node("Add", [self._own("kept"), self._own("written")], self._own("cell"))
        show = gate("output_gate", 1, self._own("cell"))
        self.node("Tanh", [self._own("cell")], self._own("squashed"))
        self.node("Mul", [show, self._own("squashed")], self._own("hidden"))
        for name in ("input_gate", "forget_gate", "output_gate", "candidate", "cell", "hidden"):
            self._add_output(name, self._own(name), layer.size)
        self._end(layer, self._own("hidden"), self._own("cell"))

    def _gru(self, layer: _Layer) -> None:
        if not layer.attributes.pop("linear_before_reset", 0) or layer.attributes:
            raise _other_form(layer)
        hidden = self._state(layer, 5, "hidden")
        of_x, of_h = self._products(layer, hidden, 3)  # z, r, h
        for place, name in ((0, "update_gate"), (1, "reset_gate")):
            self.node("Sigmoid", [self._sum(f"{name}/sum", of_x[place], of_h[place])], self._own(name))
        self.node("Mul", [self._own("reset_gate"), of_h[2]], self._own("of_past"))
        self.node("Tanh", [self._sum("candidate/sum", of_x[2], self._own("of_past"))], self._own("candidate"))
        self.node("Sub", [hidden, self._own("candidate")], self._own("change"))
        self.node("Mul", [self._own("update_gate"), self._own("change")], self._own("kept"))
        self.node("Add", [self._own("candidate"), self._own("kept")], self._own("hidden"))
        for name in ("reset_gate", "update_gate", "candidate", "hidden"):
            self._add_output(name, self._own(name), layer.size)
        self._end(layer, self._own("hidden"))

    def _rnn(self, layer: _Layer) -> None:
        activations = layer.attributes.pop("activations", [b"Tanh"])
        if activations not in ([b"Tanh"], [b"Relu"]) or layer.attributes:
            raise _other_form(layer)
        hidden = self._state(layer, 5, "hidden")
        of_x, of_h = self._products(layer, hidden, 1)
        squash = "Tanh" if activations == [b"Tanh"] else "Relu"
        self.node(squash, [self._sum("sum", of_x[0], of_h[0])], self._own("hidden"))
        self._add_output("hidden", self._own("hidden"), layer.size)
        self._end(layer, self._own("hidden"))

    def _scan(self, node: onnx.NodeProto) -> None:
        """Writes a projected or vanilla layer: the body of its scan, once."""
        attributes = {one.name: one for one in node.attribute}
        body, num_scanned = attributes["body"].g, attributes["num_scan_inputs"].i
        num_states = len(node.input) - num_scanned
        renamed: dict[str, str] = {}
        for place, (inner, outer) in enumerate(zip(body.input, node.input, strict=True)):
            renamed[inner.name] = self._own(f"body/{inner.name}")
            if place < num_states:
                self.node("Identity", [outer], renamed[inner.name])
            else:
                self.node("Squeeze", [outer, "trace/zero"], renamed[inner.name])
        for tensor in body.initializer:
            renamed[tensor.name] = self.constant(self._own(f"body/{tensor.name}"), numpy_helper.to_array(tensor))
        for inner_node in body.node:
            copied = copy_of(inner_node)
            renamed |= {name: self._own(f"body/{name}") for name in inner_node.output}
            copied.input[:] = [renamed.get(name, name) for name in inner_node.input]
            copied.output[:] = [renamed[name] for name in inner_node.output]
            copied.name = ""
            self.written.append(copied)
        splits = [one for one in body.node if one.op_type == "Split"]
        users = {name: one for one in body.node for name in one.input if one.op_type in ("Sigmoid", "Tanh")}
        states = [renamed[output.name] for output in body.output[:num_states]]
        sizes = [output.type.tensor_type.shape.dim[-1].dim_value for output in body.output[:num_states]]
        for split in splits:
            for gate, name in zip(_GATES_OF_SCAN, split.output, strict=True):
                self._add_output(gate, renamed[users[name].output[0]], sizes[1])
            self._add_output("cell", states[1], sizes[1])
        self._add_output("hidden", states[0], sizes[0])
        for output, state in zip(node.output[:num_states], states, strict=True):
            self.node("Identity", [state], output)
        self.node("Unsqueeze", [renamed[body.output[num_states].name], "trace/zero"], node.output[num_states])


def _other_form(layer: _Layer) -> ExportError:
    return ExportError(
        f"the {layer.node.op_type} {layer.node.name} does not have the form that PyTorch exports, so a trace graph does"
        " not support it"
    )


def _is_layer(node: onnx.NodeProto) -> bool:
    """Whether a scan is a layer of `models.recurrent`: two states and four gates, or one state and no gate."""
    bodies = [one.g for one in node.attribute if one.name == "body"]
    splits = [one for body in bodies for one in body.node if one.op_type == "Split"]
    if len(node.output) == 3:
        return len(splits) == 1 and len(splits[0].output) == len(_GATES_OF_SCAN)
    return len(node.output) == 2 and not splits
