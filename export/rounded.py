"""Stores large weights of graphs in 8 bits, for models whose weights `models.rounding` has rounded.

Such a weight is stored as an int8 tensor, its scales, and the Cast and the Mul that turn them into floats. ONNX Runtime
computes these two when it loads the graph (constant folding; it would keep a DequantizeLinear). So a step gives the
same bits as with float weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.graphs import Graphs, export_graphs, serialize
from export.interface import Interface
from export.surgery import copy_of, refill
from models.rounding import MIN_WEIGHTS, NUM_STEPS, round_weights

_STORED, _SCALES, _FLOATS = "int8", "scales", "floats"


def export_in_8_bits(
    interface: Interface, step: nn.Module, encoder: nn.Module | None = None, readout: nn.Module | None = None
) -> Graphs:
    """Rounds large weights of the modules in place, exports them like `export_graphs`, and stores them in 8 bits."""
    for module in (step, encoder, readout):
        if module is not None:
            round_weights(module)
    graphs = export_graphs(interface, step, encoder, readout)
    return Graphs(
        step=_stored(graphs.step),
        encoder=None if graphs.encoder is None else _stored(graphs.encoder),
        readout=None if graphs.readout is None else _stored(graphs.readout),
    )


def change_in_floats(graph: bytes, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> onnx.ModelProto:
    """Applies `change` to a graph with float weights; weights stored in 8 bits are stored so again in the result."""
    model = onnx.load_from_string(graph)
    floats = with_float_weights(model)
    return change(floats) if floats == model else store_in_8_bits(change(floats))


def store_in_8_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the graph with large, rounded weights stored in 8 bits. Other weights, and all values, stay the same."""
    stored = copy_of(model)
    graph = stored.graph
    initializers, nodes = list(graph.initializer), list(graph.node)
    del graph.initializer[:], graph.node[:]
    for tensor in initializers:
        found = None
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1 and np.prod(tensor.dims) >= MIN_WEIGHTS:
            found = _integers(numpy_helper.to_array(tensor))
        if found is None:
            graph.initializer.append(tensor)
            continue
        names = {part: f"{tensor.name}/{part}" for part in (_STORED, _SCALES, _FLOATS)}
        integers, scales = found
        graph.initializer.append(numpy_helper.from_array(integers, names[_STORED]))
        graph.initializer.append(numpy_helper.from_array(scales, names[_SCALES]))
        graph.node.append(helper.make_node("Cast", [names[_STORED]], [names[_FLOATS]], to=TensorProto.FLOAT))
        graph.node.append(helper.make_node("Mul", [names[_FLOATS], names[_SCALES]], [tensor.name]))
    graph.node.extend(nodes)
    return stored


def with_float_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Undoes `store_in_8_bits`. Returns any other graph unchanged."""
    floats = copy_of(model)
    graph = floats.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    names = [name.removesuffix(f"/{_STORED}") for name in tensors if name.endswith(f"/{_STORED}")]
    made = [name for name in names if f"{name}/{_SCALES}" in tensors]
    for name in made:
        integers, scales = (numpy_helper.to_array(tensors[f"{name}/{part}"]) for part in (_STORED, _SCALES))
        graph.initializer.append(numpy_helper.from_array(integers.astype(np.float32) * scales, name))
    gone = {f"{name}/{part}" for name in made for part in (_STORED, _SCALES, _FLOATS)}
    refill(graph.initializer, [tensor for tensor in graph.initializer if tensor.name not in gone])
    refill(graph.node, [node for node in graph.node if not gone.intersection(node.input)])
    return floats


def _integers(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """Returns weights as integers, and the scales that restore them exactly, or None if there are none.

    One scale for each row (all axes but the last) or, if that is not exact, for each column (the last axis).
    """
    rows, columns = (-1,), tuple(range(weights.ndim - 1))
    for others in (rows, columns):
        largest = np.abs(weights).max(axis=others, keepdims=True)
        scales = np.where(largest > 0, largest / np.float32(NUM_STEPS), np.float32(1.0))
        integers = np.rint(weights / scales).astype(np.int8)
        if (integers.astype(np.float32) * scales).tobytes() == np.ascontiguousarray(weights).tobytes():
            return integers, scales
    return None


def _stored(graph: bytes) -> bytes:
    return serialize(store_in_8_bits(onnx.load_from_string(graph)))
