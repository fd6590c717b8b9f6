"""Runs a one-step graph in a loop over several steps, so that a feed of many steps is one run on a ragged batch.

The loop is ONNX's `Scan`. A row without further steps keeps its states, and its further outputs are ignored. The loop
is used only if its outputs equal those of the steps one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.interface import Interface
from export.surgery import Writer, refill, rename
from service.repository.manifest import TensorSpec

MIN_OPSET = 11
"""The opset that adds `Range` and the form of `Scan` that is used here."""

FILE = "loop.onnx"
LENGTHS = TensorSpec(name="carousel/lengths", dtype="int64", shape=("batch",))


def in_chunks(interface: Interface) -> Interface:
    """Returns the interface of the loop over a step."""
    step = interface.step.model_copy(update={"lengths": LENGTHS, "max_chunk": None, "loop": FILE})
    return replace(interface, step=step)


def loop(graph: bytes, interface: Interface) -> bytes:
    """Returns the loop over a graph that takes one step. interface: of the one-step graph."""
    model = onnx.load_from_string(graph)
    outer, step = model.graph, interface.step
    states, nodes = [state.input for state in interface.states], list(outer.node)
    inner = {name: f"{name}/of_step" for name in (step.input.name, step.output.name)}
    inner |= {state.input.name: f"{state.input.name}/of_step" for state in interface.states}
    inner |= {state.output: f"{state.output}/of_step" for state in interface.states}
    for node in nodes:
        rename(node, inner)
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
        axis = state.input.shape.index("batch")
        inside.node("Concat", [inner[name], inner[state.output]], f"{name}/both", axis=axis)
        inside.node("Gather", [f"{name}/both", "carousel/loop/rows"], f"{name}/after", axis=axis)
    kinds = {tensor.name: given[tensor.name].type.tensor_type.elem_type for tensor in (step.input, *states)}
    rows = given[step.input.name].type.tensor_type.shape.dim[0]
    num_rows: str | int = rows.dim_param or rows.dim_value

    def value(name: str, kind: int, shape: Sequence[str | int]) -> onnx.ValueInfoProto:
        """Returns a declaration with a shape, which Scan needs for its body's inputs and outputs."""
        return helper.make_tensor_value_info(name, kind, [num_rows if axis == "batch" else axis for axis in shape])

    body.input.extend(value(inner[one.name], kinds[one.name], one.shape) for one in states)
    body.input.append(value("carousel/loop/item", kinds[step.input.name], ["batch", *vector]))
    body.input.append(value("carousel/loop/rows", TensorProto.INT64, ["batch"]))
    body.output.extend(value(f"{one.name}/after", kinds[one.name], one.shape) for one in states)
    body.output.append(value("carousel/loop/output", TensorProto.FLOAT, ["batch", int(step.output.shape[2])]))
    _rows(writer, step.input.name)
    writer.node(
        "Scan",
        [*(tensor.name for tensor in states), step.input.name, "carousel/loop/rows_of_steps"],
        *(state.output for state in interface.states),
        step.output.name,
        body=body,
        num_scan_inputs=2,
        scan_input_axes=[1, 1],
        scan_output_axes=[1],
    )
    for name in (step.input.name, step.output.name):
        given[name].type.tensor_type.shape.dim[1].dim_param = "time"
    lengths = value(LENGTHS.name, TensorProto.INT64, ["batch"])
    refill(outer.input, [outer.input[0], lengths, *outer.input[1:]])
    del outer.value_info[:]
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def _rows(writer: Writer, step_input: str) -> None:
    """Writes, for each row and step, the place of its next state among the states before and after it, [batch, time].

    A row that has the step takes the state after it, another row keeps the state before it. The graph gathers states
    by place, because ONNX Runtime's `Where` turns -0 into 0.
    """
    zero, one = (writer.constant(name, np.array(value, np.int64)) for name, value in (("zero", 0), ("one", 1)))
    column = writer.constant("column", np.array([-1, 1], np.int64))
    writer.node("Shape", [step_input], "carousel/loop/shape")
    writer.node("Gather", ["carousel/loop/shape", zero], "carousel/loop/num_rows", axis=0)
    writer.node("Gather", ["carousel/loop/shape", one], "carousel/loop/num_steps", axis=0)
    writer.node("Range", [zero, "carousel/loop/num_steps", one], "carousel/loop/steps")
    writer.node("Reshape", [LENGTHS.name, column], "carousel/loop/ends")
    writer.node("Less", ["carousel/loop/steps", "carousel/loop/ends"], "carousel/loop/have_steps")
    writer.node("Cast", ["carousel/loop/have_steps"], "carousel/loop/are_after", to=TensorProto.INT64)
    writer.node("Mul", ["carousel/loop/are_after", "carousel/loop/num_rows"], "carousel/loop/offsets")
    writer.node("Range", [zero, "carousel/loop/num_rows", one], "carousel/loop/range")
    writer.node("Reshape", ["carousel/loop/range", column], "carousel/loop/own")
    writer.node("Add", ["carousel/loop/offsets", "carousel/loop/own"], "carousel/loop/rows_of_steps")
