"""Converts between the rows of the emitting loop and a file's own tensor layout. outer: writes the constants.

Shapes: `A` rows.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from export.surgery import Writer, renamed
from export.transducers.network import Network, Port


def entered(outer: Writer, writer: Writer, port: Port, rows: str) -> None:
    """Writes an input of a file from rows [A, size], under the name that `nodes_of` gives it."""
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
    """Writes a state's next value as rows [A, size], and returns its name."""
    return left(outer, writer, Port(output, port.dtype, port.shape, port.batch_axis), output, output)


def left(outer: Writer, writer: Writer, port: Port, output: str, name: str, *, is_flat: bool = True) -> str:
    """Writes an output of a file as rows [A, size], or [A, ...] if not `is_flat`, and returns its name."""
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
    """Returns a file's nodes with renamed inputs, because the inputs' own names are the bundle's states."""
    ports = [*network.reads.values(), *(kept.input for kept in network.states)]
    names = {port.name: f"{port.name}/given" for port in ports}
    return [renamed(one, names) for one in network.model.graph.node]
