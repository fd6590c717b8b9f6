"""Removes branches that a constant rules out, with the nodes that only they need.

Shape inference and the search for states look at every branch of an `If`. If, for example, the user fixes the sampling
rate, one branch is another model that does not fit the step's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from export.foreign.axes import Hints, check_constant, size_of, tensor_of
from export.proofs.runners import Array
from export.surgery import copy_of, read_by, refill, renamed

_EVALUATED = (
    "Cast",
    "Identity",
    "Equal",
    "Not",
    "And",
    "Or",
    "Xor",
    "Less",
    "Greater",
    "LessOrEqual",
    "GreaterOrEqual",
)
"""The operators that compute conditions."""


def without_others(model: onnx.ModelProto, hints: Hints) -> tuple[onnx.ModelProto, Hints, dict[str, Array], list[str]]:
    """Returns the model without the branches that its constants rule out.

    Also returns the hints without the constants that it does not read any more, the values of these constants by name,
    and notes about them. If there is no such branch, returns the model and the hints unchanged.

    Raises ExportError for a constant of a type that is not served, or with a value that its type cannot represent.
    """
    fixed = _constants(model, hints)
    pruned = copy_of(model)
    graph = pruned.graph
    known = {one.name: one for one in graph.initializer}
    values: dict[str, Any] = dict(fixed)
    num_left_out, nodes = 0, list(graph.node)
    del graph.node[:]
    while nodes:
        node = nodes.pop(0)
        condition = values.get(node.input[0]) if node.op_type == "If" else None
        if condition is None:
            _evaluate(node, known, values)
            graph.node.append(node)
        else:
            name = "then_branch" if bool(np.all(condition)) else "else_branch"
            (branch,) = [one.g for one in node.attribute if one.name == name]
            nodes = [*_inlined(branch, node, graph), *nodes]
            num_left_out += 1
    if not num_left_out:
        return model, hints, {}, []
    used = _drop_the_unread(graph)
    unread = {name: value for name, value in fixed.items() if name not in used}
    refill(graph.input, [one for one in graph.input if one.name not in unread])
    del graph.value_info[:]
    left = {name: value for name, value in hints.constants.items() if name not in unread}
    notes = [
        f"{name} = {', '.join(f'{one:g}' for one in value.reshape(-1).tolist())} selects the branches that run; the"
        " others are removed"
        for name, value in unread.items()
    ]
    return pruned, replace(hints, constants=left), unread, notes


def _constants(model: onnx.ModelProto, hints: Hints) -> dict[str, Array]:
    """Returns the values of the constants from flags, for inputs whose sizes are known."""
    found: dict[str, Array] = {}
    for value in model.graph.input:
        given = hints.constants.get(value.name)
        if given is None:
            continue
        tensor = tensor_of(value, hints)
        if all(isinstance(axis, int) for axis in tensor.shape):
            shape = [size_of(tensor, place) for place in range(len(tensor.shape))]
            count = int(np.prod(shape))
            if len(given) in (1, count):
                check_constant(tensor, given)
                found[value.name] = np.resize(np.array(given, tensor.dtype), shape)
    return found


def _evaluate(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto], values: dict[str, Any]) -> None:
    """Adds a node's output to `values`, if its inputs are known."""
    if node.op_type == "Constant" and node.attribute[0].name == "value":
        values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    if node.op_type not in _EVALUATED:
        return
    given = {name: numpy_helper.to_array(known[name]) for name in node.input if name in known}
    given |= {name: values[name] for name in node.input if name in values}
    if len(given) == len(set(node.input)):
        results: list[Any] = ReferenceEvaluator(node).run(None, given)  # type: ignore[assignment]  # a list of all
        values[node.output[0]] = results[0]


def _inlined(branch: onnx.GraphProto, node: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Returns the nodes of a branch, renamed to be unique, for the graph that contains its `If`."""
    own = [name for inner in branch.node for name in inner.output] + [one.name for one in branch.initializer]
    names = {name: f"{node.output[0]}/{name}" for name in own if name}
    given = {name for inner in branch.node for name in inner.output}
    copies: list[onnx.NodeProto] = []
    for output, name in zip(branch.output, node.output, strict=True):
        if output.name in given:
            given.discard(output.name)
            names[output.name] = name
        else:  # a value of the surrounding graph, or a second output with the same value
            copies.append(onnx.helper.make_node("Identity", [names.get(output.name, output.name)], [name]))
    for tensor in branch.initializer:
        moved = graph.initializer.add()
        moved.CopyFrom(tensor)
        moved.name = names[tensor.name]
    return [*(renamed(inner, names) for inner in branch.node), *copies]


def _drop_the_unread(graph: onnx.GraphProto) -> set[str]:
    """Removes the nodes whose outputs nothing reads. Returns the names that are read."""
    while True:
        read = read_by(graph)
        kept = [node for node in graph.node if read.intersection(node.output)]
        if len(kept) == len(graph.node):
            return read
        refill(graph.node, kept)
