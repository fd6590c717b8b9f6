"""Rows, as the loop that emits tokens has them, to what a file reads, and back. outer: writes the constants.

Shapes: `A` rows.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from export.surgery import Writer, rename
from export.transducers.network import Network, Port


def entered(outer: Writer, writer: Writer, port: Port, rows: str) -> None:
    """An input of a file, of rows [A, size]: see `_nodes`."""
    inner = f"{port.name}/given"
    shape = outer.constant(f"{port.name}/row_shape", np.array([-1, *port.row_shape], np.int64))
    name = f"{port.name}/rows"
    if port.dtype == "int32":
        writer.node("Cast", [rows], f"{name}/cast", to=TensorProto.INT32)
        rows = f"{name}/cast"
    ahead = list(range(1, len(port.shape)))
    ahead.insert(port.batch_axis, 0)
    if ahead == sorted(ahead):
        writer.node("Reshape", [rows, shape], inner)
        return
    writer.node("Reshape", [rows, shape], name)
    writer.node("Transpose", [name], inner, perm=ahead)


def left_state(outer: Writer, writer: Writer, port: Port, output: str) -> str:
    """The next value of a state as rows [A, size]; its name."""
    return left(outer, writer, Port(output, port.dtype, port.shape, port.batch_axis), output, output)


def left(outer: Writer, writer: Writer, port: Port, output: str, name: str, *, is_flat: bool = True) -> str:
    """An output of a file as rows [A, size], or as they are; its name."""
    last = output
    if port.batch_axis:
        ahead = [port.batch_axis, *(place for place in range(len(port.shape)) if place != port.batch_axis)]
        writer.node("Transpose", [output], f"{name}/rows_first", perm=ahead)
        last = f"{name}/rows_first"
    if not is_flat:
        return last
    shape = outer.constant(f"{name}/flat_shape", np.array([-1, port.size], np.int64))
    writer.node("Reshape", [last, shape], f"{name}/flat")
    return f"{name}/flat"


def nodes_of(network: Network) -> list[onnx.NodeProto]:
    """A file's nodes, which read what they are given: its inputs' own names are those of the sessions' states."""
    ports = [*network.reads.values(), *(kept.input for kept in network.states)]
    names = {port.name: f"{port.name}/given" for port in ports}
    nodes = []
    for one in network.model.graph.node:
        nodes.append(onnx.NodeProto())
        nodes[-1].CopyFrom(one)
        rename(nodes[-1], names)
    return nodes
