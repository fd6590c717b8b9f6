"""A graph that takes one step, in a loop over several: a feed of many steps is one run, and a batch is ragged.

The loop is ONNX's `Scan`. Rows that have no more steps keep their states, and what they give is not read. What the loop
gives is held to the steps one by one before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.interface import Interface
from export.surgery import Writer
from service.repository.manifest import TensorSpec

MIN_OPSET = 11
"""Of `Range`, and of `Scan` as it is since."""

FILE = "loop.onnx"
LENGTHS = TensorSpec(name="carousel/lengths", dtype="int64", shape=("batch",))


def in_chunks(interface: Interface) -> Interface:
    """The interface of the loop over a step."""
    step = interface.step.model_copy(update={"lengths": LENGTHS, "max_chunk": None, "loop": FILE})
    return Interface(step=step, states=interface.states, step_vocabulary_size=interface.step_vocabulary_size)


def loop(graph: bytes, interface: Interface) -> bytes:
    """The loop over a graph that takes one step. interface: of that."""
    model = onnx.load_from_string(graph)
    outer, step = model.graph, interface.step
    states, nodes = [state.input for state in interface.states], list(outer.node)
    inner = {name: f"{name}/of_step" for name in (step.input.name, step.output.name)}
    inner |= {state.input.name: f"{state.input.name}/of_step" for state in interface.states}
    inner |= {state.output: f"{state.output}/of_step" for state in interface.states}
    for node in nodes:
        _rename(node, inner)
    given = {value.name: value for value in [*outer.input, *outer.output]}
    del outer.node[:]
    writer = Writer(outer, "carousel/loop/")
    vector = [int(axis) for axis in step.input.shape[2:]]
    body = helper.make_graph([], "step", [], [])
    inside = Writer(body, "carousel/loop/")
    one = writer.constant("one_step", np.array([0, 1, *vector], np.int64))
    flat = writer.constant("flat", np.array([0, int(step.output.shape[2])], np.int64))
    inside.node("Reshape", ["carousel/loop/item", one], inner[step.input.name])
    body.node.extend(nodes)
    inside.node("Reshape", [inner[step.output.name], flat], "carousel/loop/output")
    for state in interface.states:
        name = state.input.name
        form = [-1 if axis == "batch" else 1 for axis in state.input.shape]
        inside.node(
            "Reshape",
            ["carousel/loop/has_step", writer.constant(f"form/{name}", np.array(form, np.int64))],
            f"{name}/has_step",
        )
        inside.node("Where", [f"{name}/has_step", inner[state.output], inner[name]], f"{name}/after")
    kinds = {tensor.name: given[tensor.name].type.tensor_type.elem_type for tensor in (step.input, *states)}
    body.input.extend(helper.make_tensor_value_info(inner[tensor.name], kinds[tensor.name], None) for tensor in states)
    body.input.append(helper.make_tensor_value_info("carousel/loop/item", kinds[step.input.name], None))
    body.input.append(helper.make_tensor_value_info("carousel/loop/has_step", TensorProto.BOOL, None))
    body.output.extend(
        helper.make_tensor_value_info(f"{tensor.name}/after", kinds[tensor.name], None) for tensor in states
    )
    body.output.append(helper.make_tensor_value_info("carousel/loop/output", TensorProto.FLOAT, None))
    _has_step(writer, step.input.name)
    scan = helper.make_node(
        "Scan",
        [*(tensor.name for tensor in states), step.input.name, "carousel/loop/have_steps"],
        [*(state.output for state in interface.states), step.output.name],
        body=body,
        num_scan_inputs=2,
        scan_input_axes=[1, 1],
        scan_output_axes=[1],
    )
    outer.node.append(scan)
    for name in (step.input.name, step.output.name):
        given[name].type.tensor_type.shape.dim[1].dim_param = "time"
    rows = given[step.input.name].type.tensor_type.shape.dim[0]
    lengths = helper.make_tensor_value_info(LENGTHS.name, TensorProto.INT64, [rows.dim_param or rows.dim_value])
    inputs = list(outer.input)
    del outer.input[:], outer.value_info[:]
    outer.input.extend([inputs[0], lengths, *inputs[1:]])
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def _has_step(writer: Writer, step_input: str) -> None:
    """Which rows have which steps, [batch, time]."""
    zero, one = (writer.constant(name, np.array(value, np.int64)) for name, value in (("zero", 0), ("one", 1)))
    place = writer.constant("time_axis", np.array(1, np.int64))
    column = writer.constant("column", np.array([-1, 1], np.int64))
    writer.node("Shape", [step_input], "carousel/loop/shape")
    writer.node("Gather", ["carousel/loop/shape", place], "carousel/loop/num_steps", axis=0)
    writer.node("Range", [zero, "carousel/loop/num_steps", one], "carousel/loop/steps")
    writer.node("Reshape", [LENGTHS.name, column], "carousel/loop/ends")
    writer.node("Less", ["carousel/loop/steps", "carousel/loop/ends"], "carousel/loop/have_steps")


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Renames what a node reads and gives, also inside its branches and bodies."""
    for field in (node.input, node.output):
        field[:] = [names.get(name, name) for name in field]
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                _rename(inner, names)
            for value in graph.output:
                value.name = names.get(value.name, value.name)
