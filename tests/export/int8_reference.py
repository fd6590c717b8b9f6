"""The int8 language model in plain NumPy: the reference for every bit of the graph's results.

Only sigmoid and tanh are ONNX Runtime's, each in a graph of one operator, because libraries differ in their last bits.

Shapes: `B` batch, `I` input size, `H` hidden size, `L` layers, `K` and `N` a product's inner size and columns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.language_model import LanguageModel
from models.recurrent import RecurrentLayer

FloatArray = NDArray[np.float32]


def quantize_row(row: FloatArray) -> tuple[NDArray[np.uint8], np.float32]:
    """Returns bytes around 128, and their scale: row = (bytes - 128) * scale. row: [K]."""
    scale = np.abs(row).max() * np.float32(1 / 127) + np.float32(1e-30)
    return (np.rint(row / scale) + 128).astype(np.uint8), scale


def quantize_column(column: FloatArray) -> tuple[NDArray[np.int8], np.float32]:
    """Returns integers from -63 to 63 (seven bits), and their scale. column: [K]."""
    scale = np.maximum(np.abs(column).max() / np.float32(63), np.float32(1e-30))
    return np.rint(column / scale).astype(np.int8), scale


def product(rows: FloatArray, weights: FloatArray) -> FloatArray:
    """Returns the product, [B, N], computed with integers. rows: [B, K]; weights: [K, N]."""
    result = np.empty((len(rows), weights.shape[1]), np.float32)
    for number, row in enumerate(rows):
        row_bytes, row_scale = quantize_row(row)
        for column in range(weights.shape[1]):
            column_bytes, column_scale = quantize_column(weights[:, column])
            total = np.sum((row_bytes.astype(np.int64) - 128) * column_bytes)
            result[number, column] = np.float32(total) * column_scale * row_scale
    return result


def lstm_step(
    layer: RecurrentLayer, inputs: FloatArray, hidden: FloatArray, cell: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Computes one step of a layer. inputs: [B, I]; hidden, cell: [B, H]. Returns the next (hidden, cell)."""
    joined = np.concatenate([inputs, hidden], axis=1)  # [B, I + H]
    parameter = {name: value.detach().numpy() for name, value in layer.rnn.named_parameters()}
    weights = np.concatenate([parameter["weight_ih_l0"], parameter["weight_hh_l0"]], axis=1).T  # [I + H, 4H]
    bias = parameter["bias_ih_l0"] + parameter["bias_hh_l0"]
    i, f, g, o = np.split(product(joined, weights) + bias, 4, axis=1)  # PyTorch's order
    next_cell = sigmoid(f) * cell + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(next_cell), next_cell


def step(
    model: LanguageModel, tokens: NDArray[np.int64], hidden: FloatArray, cell: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Computes one step; every product is int8. tokens: [B]; hidden, cell: [L, B, H]. Returns logits [B, V], next
    hidden and next cell."""
    outputs = model.embedding.weight.detach().numpy()[tokens]
    next_hidden, next_cell = np.empty_like(hidden), np.empty_like(cell)
    for index, layer in enumerate(model.stack.layers):
        assert isinstance(layer, RecurrentLayer)
        outputs, next_cell[index] = lstm_step(layer, outputs, hidden[index], cell[index])
        next_hidden[index] = outputs
    logits = product(outputs, model.projection.weight.detach().numpy().T) + model.projection.bias.detach().numpy()
    return logits, next_hidden, next_cell


def _elementwise(op_type: str) -> Callable[[FloatArray], FloatArray]:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "columns"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op_type, ["x"], ["y"])], op_type, value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return lambda x: np.asarray(session.run(None, {"x": x})[0])


sigmoid = _elementwise("Sigmoid")
tanh = _elementwise("Tanh")
