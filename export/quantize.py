"""Makes the int8 variant of a graph: its LSTM layers and large products run in 8-bit integers, row by row.

1. Each row is quantised by itself: its scale is its own largest absolute value over 127, and its numbers become
   unsigned bytes around 128. ONNX Runtime's own dynamic quantisation uses one scale for the whole batch, so other rows
   would change a row's bits.
2. Weights have 7 bits, -63 to 63, and one scale for each output column. With 8 bits, products on an x86 processor
   without VNNI saturate in pairs.
3. An LSTM layer is written as the operators of one step, so a graph takes one token a row. Its product is over [x, h]
   together.
4. Everything else (embedding, attention, small products, the arithmetic of gates) stays in 32-bit floats.
5. A row with NaN or infinity gives NaN, as in floats. ReduceMax ignores NaN, so the scale also uses the row's sum.

Integer arithmetic is exact, and each float operation is one operator. So the result is defined bit by bit, except for
the last bits of Sigmoid and Tanh.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.surgery import Writer, copy_of, drop_the_unused

FloatArray = NDArray[np.float32]

NUM_ACTIVATION_STEPS = 127
NUM_WEIGHT_STEPS = 63
ZERO_POINT = 128
MIN_SCALE = 1e-30
"""Added to every scale, so that a row of zeros does not divide by zero."""
MIN_QUANTIZED = 65_536
"""Fewest weights of a quantised product: a smaller one is as fast, or faster, in floats."""


class NothingToQuantizeError(ExportError):
    """A graph has no LSTM layer and no large product."""


def quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a graph with the same inputs and outputs that computes LSTM layers and large products in 8-bit integers.

    model: a step graph, which then takes one token a row, or a readout. Raises ExportError for an LSTM operator that is
    not a plain forward one, as this exporter writes them, and NothingToQuantizeError.
    """
    quantized = copy_of(model)
    graph = quantized.graph
    rewriter = _Rewriter(graph)
    del graph.node[:]
    for node in model.graph.node:
        if node.op_type == "LSTM":
            rewriter.add_lstm(node)
        elif node.op_type == "MatMul" and rewriter.is_big(node.input[1]):
            rewriter.add_matmul(node)
        else:
            rewriter.add(node)
    if not rewriter.has_products:
        raise NothingToQuantizeError(
            f"nothing can be computed in 8 bits: there is no LSTM layer, and no product with {MIN_QUANTIZED:,} weights"
            " or more. Export without the variant int8"
        )
    drop_the_unused(graph)
    return quantized


def quantize_weights(weights: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """Returns weights [K, N] as 7-bit integers [K, N], and each column's scale [N], which multiplies them."""
    scales = np.maximum(np.abs(weights).max(axis=0) / np.float32(NUM_WEIGHT_STEPS), np.float32(MIN_SCALE))
    return np.rint(weights / scales).astype(np.int8), scales.astype(np.float32)


def lstm_weights(weight: FloatArray, recurrence: FloatArray, bias: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Joins ONNX's weight [1, 4H, I], recurrence [1, 4H, H] and bias [1, 8H] into one product: [I + H, 4H] and [4H]."""
    joined = np.concatenate([weight[0], recurrence[0]], axis=1).T
    from_input, from_hidden = np.split(bias[0], 2)
    return np.ascontiguousarray(joined), from_input + from_hidden


class _Rewriter(Writer):
    """Writes nodes into a graph. Tensors of quantised products are time first, as in exported graphs: [1, B, ...]."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__(graph, "int8/")
        self._weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._renamed: dict[str, str] = {}
        self._zero_points: str | None = None
        for name, value in (
            ("nothing", np.float32(0)),
            ("min_scale", np.float32(MIN_SCALE)),
            ("step", np.float32(1 / NUM_ACTIVATION_STEPS)),
            ("zero_point", np.uint8(ZERO_POINT)),
            ("row", np.array([2], np.int64)),
            ("all_but_rows", np.array([0, 2], np.int64)),
        ):
            self.constant(name, np.asarray(value))

    @property
    def has_products(self) -> bool:
        """Whether a quantised product was written."""
        return self._zero_points is not None

    def is_big(self, name: str) -> bool:
        """Whether `name` is a constant matrix that is worth quantising."""
        weights = self._weights.get(name)
        return weights is not None and weights.ndim == 2 and weights.size >= MIN_QUANTIZED

    def add(self, node: onnx.NodeProto) -> None:
        """Writes a node unchanged, except for renamed inputs. Omits a node that only renames its input."""
        inputs = [self._renamed.get(name, name) for name in node.input]
        if node.op_type == "Squeeze" and node.input[0] in self._renamed:
            self._renamed[node.output[0]] = inputs[0]  # the rewritten LSTM's outputs have no axis of directions
            return
        if node.op_type == "Transpose" and node.input[0] in self._weights:  # logits may share the embedding's weights
            axes = {attribute.name: list(attribute.ints) for attribute in node.attribute}
            self._weights[node.output[0]] = self._weights[node.input[0]].transpose(axes.get("perm"))
        copied = self.graph.node.add()
        copied.CopyFrom(node)
        copied.input[:] = inputs

    def add_matmul(self, node: onnx.NodeProto) -> None:
        """Writes the product of [1, B, K] and a constant [K, N]."""
        x, weights = self._renamed.get(node.input[0], node.input[0]), self._weights[node.input[1]]
        self._product(node.output[0], x, weights, node.output[0])

    def add_lstm(self, node: onnx.NodeProto) -> None:
        """Writes one step of a layer. Gates are in ONNX's order: i, o, f, c."""
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        size = attributes.pop("hidden_size", None)
        if attributes.pop("direction", b"forward") != b"forward" or attributes or len(node.input) != 7:
            raise ExportError(f"the LSTM operator {node.name} cannot be quantised: only plain forward LSTMs can")
        x, weight, recurrence, bias, _, hidden, cell = (self._renamed.get(name, name) for name in node.input)
        outputs, next_hidden, next_cell = node.output
        weights, bias_values = lstm_weights(self._weights[weight], self._weights[recurrence], self._weights[bias])
        own = f"int8/{next_hidden}"
        self.constant(f"{own}/bias", bias_values)
        self.constant(f"{own}/three_and_one", np.array([3 * size, size], np.int64))
        self.node("Concat", [x, hidden], f"{own}/joined", axis=2)  # [1, B, I + H]
        self._product(own, f"{own}/joined", weights, f"{own}/products")  # [1, B, 4H]
        self.node("Add", [f"{own}/products", f"{own}/bias"], f"{own}/gates")
        self.node("Split", [f"{own}/gates", f"{own}/three_and_one"], f"{own}/iof", f"{own}/c", axis=2)
        self.node("Sigmoid", [f"{own}/iof"], f"{own}/opened")
        self.node("Tanh", [f"{own}/c"], f"{own}/candidate")
        self.node("Split", [f"{own}/opened"], f"{own}/i", f"{own}/o", f"{own}/f", axis=2, num_outputs=3)
        self.node("Mul", [f"{own}/f", cell], f"{own}/kept")
        self.node("Mul", [f"{own}/i", f"{own}/candidate"], f"{own}/written")
        self.node("Add", [f"{own}/kept", f"{own}/written"], next_cell)
        self.node("Tanh", [next_cell], f"{own}/squashed")
        self.node("Mul", [f"{own}/o", f"{own}/squashed"], next_hidden)
        self._renamed[outputs] = next_hidden

    def _product(self, own: str, x: str, weights: FloatArray, output: str) -> None:
        """Writes output = x weights. x: [1, B, K] floats; weights: [K, N]; output: [1, B, N] floats."""
        own = own if own.startswith("int8/") else f"int8/{own}"
        quantized, scales = quantize_weights(weights)
        self.constant(f"{own}/weights", quantized)
        self.constant(f"{own}/scales", scales)
        self.node("Abs", [x], f"{own}/magnitudes")
        self.node("ReduceMax", [f"{own}/magnitudes", "int8/row"], f"{own}/largest")  # [1, B, 1]
        self.node("Mul", [f"{own}/largest", "int8/step"], f"{own}/steps")
        self.node("ReduceSum", [x, "int8/row"], f"{own}/sum")
        self.node("Mul", [f"{own}/sum", "int8/nothing"], f"{own}/zero_or_nan")
        self.node("Sum", [f"{own}/steps", f"{own}/zero_or_nan", "int8/min_scale"], f"{own}/row_scales")  # [1, B, 1]
        self.node("Squeeze", [f"{own}/row_scales", "int8/all_but_rows"], f"{own}/row_scale")  # [B]
        self.node("QuantizeLinear", [x, f"{own}/row_scale", self._zero_point(own)], f"{own}/bytes", axis=1)
        self.node("MatMulInteger", [f"{own}/bytes", f"{own}/weights", "int8/zero_point"], f"{own}/sums")
        self.node("Cast", [f"{own}/sums"], f"{own}/float_sums", to=TensorProto.FLOAT)
        self.node("Mul", [f"{own}/float_sums", f"{own}/scales"], f"{own}/by_column")
        self.node("Mul", [f"{own}/by_column", f"{own}/row_scales"], output)

    def _zero_point(self, own: str) -> str:
        """Returns the zero point of each row, [B]: QuantizeLinear takes as many zero points as scales."""
        if self._zero_points is None:
            self._zero_points = "int8/zero_points"
            self.node("Shape", [f"{own}/row_scale"], "int8/num_rows")
            self.node("Expand", ["int8/zero_point", "int8/num_rows"], self._zero_points)
        return self._zero_points
