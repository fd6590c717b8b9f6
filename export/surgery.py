"""Basic questions to graphs, and basic changes of them: nodes, constants, names, unused parts, shared weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data

Message = TypeVar("Message")
Attribute: TypeAlias = int | float | Sequence[int] | onnx.TensorProto | onnx.GraphProto
RECURRENT = ("LSTM", "GRU", "RNN")
"""ONNX's recurrent operators."""
_MIN_SHARED_BYTES = 1024


def element_type(dtype: str) -> int:
    """Returns ONNX's number of a data type. dtype: its name in a manifest and in NumPy, such as `float32`."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class Writer:
    """Adds nodes and constants to a graph. prefix: added to each constant's name that does not begin with it."""

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        self.graph = graph
        self.prefix = prefix

    def node(
        self,
        op_type: str,
        inputs: Sequence[str],
        *outputs: str,
        **attributes: Attribute,
    ) -> None:
        """Adds a node of type `op_type`."""
        node = helper.make_node(op_type, inputs, outputs)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.graph.node.append(node)

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Adds a constant and returns its name."""
        name = name if name.startswith(self.prefix) else f"{self.prefix}{name}"
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name


def copy_of(message: Message) -> Message:
    """Returns a copy of a model, a node or another protobuf message."""
    return copy.deepcopy(message)


def opset_of(model: onnx.ModelProto) -> int:
    """Returns the version of the standard operators; 0 if the model does not say."""
    return max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)


def graphs_in(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yields a node's branches or bodies."""
    for attribute in node.attribute:
        yield from [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def nodes_in(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yields the nodes of a graph, each before those of the graphs inside it."""
    for node in graph.node:
        yield node
        for inner in graphs_in(node):
            yield from nodes_in(inner)


def read_by(graph: onnx.GraphProto) -> set[str]:
    """Returns all names that a graph's nodes read, also inside branches and bodies, and its outputs."""
    read = {one.name for one in graph.output}
    for node in graph.node:
        read.update(node.input, *map(read_by, graphs_in(node)))
    return read


def refill(field: MutableSequence[Message], values: Iterable[Message]) -> None:
    """Replaces all messages in a repeated field, which protobuf cannot assign."""
    kept = list(values)
    del field[:]
    field.extend(kept)


def drop_the_unused(graph: onnx.GraphProto) -> None:
    """Removes nodes and weights that no output needs."""
    used = {output.name for output in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(list(graph.node)):
        if used.intersection(node.output):
            kept.append(node)
            used.update(node.input)
            used.update(*map(read_by, graphs_in(node)))
    refill(graph.node, reversed(kept))
    refill(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in used])


def share_weights(graph: onnx.GraphProto, step: bytes, file: str) -> None:
    """Turns constants whose bytes the step graph's file contains into external data in that file.

    step: the file's bytes. file: its name. Constants below `_MIN_SHARED_BYTES` stay as they are.
    """
    for tensor in graph.initializer:
        data = numpy_helper.to_array(tensor).tobytes()
        place = step.find(data) if len(data) >= _MIN_SHARED_BYTES else -1
        if place < 0:
            continue
        tensor.raw_data = data
        set_external_data(tensor, file, place, len(data))
        for name in ("raw_data", "float_data", "int64_data"):
            tensor.ClearField(name)


def rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Renames a node's inputs and outputs, also inside its branches and bodies."""
    for field in (node.input, node.output):
        field[:] = [names.get(name, name) for name in field]
    for graph in graphs_in(node):
        for inner in graph.node:
            rename(inner, names)
        for value in graph.output:
            value.name = names.get(value.name, value.name)


def renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """Returns a copy of a node with renamed inputs and outputs: see `rename`."""
    copied = copy_of(node)
    rename(copied, names)
    return copied
