"""Makes the encoder's outputs for one source constants of a decoder: a graph with only the step and its states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from export.foreign.axes import Tensor
from export.foreign.links import Placed
from export.proofs.runners import Array
from export.surgery import Writer, copy_of, refill

_PREFIX = "carousel/bound/"


def bind(
    model: onnx.ModelProto,
    values: Mapping[str, Array],
    placed: Sequence[Placed],
    token: Tensor | None,
    rows: int | None,
) -> onnx.ModelProto:
    """Returns the model without the inputs of `values`, which have the same value in each row.

    placed: those inputs. token, rows: the input whose axis `rows` has as many rows as the run; None: a run has one row.
    """
    bound = copy_of(model)
    graph = bound.graph
    nodes = list(graph.node)
    del graph.node[:], graph.value_info[:]
    refill(graph.input, [one for one in graph.input if one.name not in values])
    writer = Writer(graph, _PREFIX)
    if token is not None and rows is not None:
        place = writer.constant("rows", np.array([rows], np.int64))
        writer.node("Shape", [token.name], f"{_PREFIX}shape")
        writer.node("Gather", [f"{_PREFIX}shape", place], f"{_PREFIX}num_rows", axis=0)
    for one in placed:
        name, value = one.tensor.name, values[one.tensor.name]
        whole = writer.constant(name, np.ascontiguousarray(value))
        if token is None or rows is None or one.rows is None:
            writer.node("Identity", [whole], name)
            continue
        ahead = writer.constant(f"{name}/ahead", np.array(value.shape[: one.rows], np.int64))
        rest = writer.constant(f"{name}/rest", np.array(value.shape[one.rows + 1 :], np.int64))
        writer.node("Concat", [ahead, f"{_PREFIX}num_rows", rest], f"{_PREFIX}{name}/shape", axis=0)
        writer.node("Expand", [whole, f"{_PREFIX}{name}/shape"], name)
    graph.node.extend(nodes)
    return bound
