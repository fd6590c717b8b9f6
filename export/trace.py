"""Makes the trace graph: a step graph whose recurrent operators are written as plain ones, to show gates and states.

1. It is made from the proven step graph alone, so it works for any exporter's graphs. A model has a trace graph if its
   layers are ONNX's `RNN`, `GRU` or `LSTM`, or a `Scan` of `models.recurrent`; otherwise it has none.
2. It takes one step a row. It is for display: its bits may differ from the step's in the last place. Its states are
   compared with the step's states within `tolerances.TRACE`.
3. Its weights are not stored twice: they are external data in the step graph's file.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, version_converter

from export.errors import ExportError, first_line
from export.graphs import Graphs
from export.interface import Interface
from export.proofs import tolerances
from export.proofs.runners import OnnxRunner, session_of
from export.proofs.walks import draw_rows
from export.rounded import store_in_8_bits, with_float_weights
from export.surgery import drop_the_unused, opset_of, read_by, refill, share_weights
from export.unroll import Unroller
from models.recurrent import ONNX_DOMAIN_VERSION
from service.repository.manifest import TensorSpec, TraceOutputSpec, TraceSpec

FILE = "trace.onnx"
_MIN_OPSET = 18
"""The least opset of the operators written here; older graphs are converted first."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace graph and its entry in the manifest."""

    spec: TraceSpec
    graph: bytes


def trace_or_note(step: bytes, interface: Interface, notes: list[str] | None) -> Trace | None:
    """Returns the trace of a proven step graph; None if there is none, with a note that says why.

    notes: None: raises what `make_trace` raises instead.
    """
    if notes is None:
        return make_trace(step, interface)
    trace, reason = None, "no LSTM, GRU or RNN operator"
    try:
        trace = make_trace(step, interface)
    except Exception as error:  # a user's graph may be anything, and needs no trace to be served
        reason = first_line(error)
    if trace is None:
        notes.append(f"it has no trace graph: {reason}")
    return trace


def make_trace(step: bytes, interface: Interface) -> Trace | None:
    """Returns the trace of a proven step graph, compared with it; None when the step has no gates or states to show.

    Raises ExportError when a state in the trace is not one of the step's.
    """
    stored = onnx.load_from_string(step)
    model = with_float_weights(stored)
    is_in_8_bits = model != stored
    if opset_of(model) < _MIN_OPSET:
        model = version_converter.convert_version(model, ONNX_DOMAIN_VERSION)
    writer = Unroller(model.graph)
    for node in list(model.graph.node):
        writer.take(node)
    writer.add_attention()
    if not writer.output_sizes:
        return None
    del model.graph.output[:], model.graph.value_info[:]
    refill(model.graph.node, writer.written)
    outputs = [
        TraceOutputSpec(
            name=name, tensor=TensorSpec(name=f"trace/{name}", dtype="float32", shape=("batch", "time", size))
        )
        for name, size in writer.output_sizes.items()
    ]
    for output in outputs:
        rows = "batch" if interface.step.max_rows is None else 1
        shape = [rows, 1, *output.tensor.shape[2:]]
        value = helper.make_tensor_value_info(output.tensor.name, TensorProto.FLOAT, shape)
        model.graph.output.append(value)
    drop_the_unused(model.graph)
    used = read_by(model.graph)
    refill(model.graph.input, [value for value in model.graph.input if value.name in used])
    onnx.checker.check_model(model)  # not full_check: ONNX Runtime checks shapes; onnx infers none for some `If`
    spec = TraceSpec(file=FILE, outputs=tuple(outputs))
    if is_in_8_bits:
        model = store_in_8_bits(model)
    share_weights(model.graph, step, interface.step.file)
    graph = model.SerializeToString(deterministic=True)
    _prove(step, graph, spec, interface)
    return Trace(spec, graph)


def _prove(step: bytes, graph: bytes, spec: TraceSpec, interface: Interface) -> None:
    """Compares every state in the trace with the step's states, on random rows after one step from random states."""
    generator = np.random.default_rng(0)
    rows = draw_rows(interface, generator, num_rows=interface.step.max_rows or 7, max_tokens=1)
    tokens = np.stack([row.tokens[:1] for row in rows])
    lengths = np.ones(len(rows), np.int64)
    carried = [_random(tensor, len(rows), generator) for tensor in interface.carried_inputs]
    outputs = OnnxRunner(Graphs(step=step), interface).step(tokens, lengths, carried)
    states = outputs[1 : 1 + len(interface.states)]
    with tempfile.TemporaryDirectory() as folder:
        for name, content in ((interface.step.file, step), (spec.file, graph)):
            (Path(folder) / name).write_bytes(content)
        session = session_of(Path(folder) / spec.file)
    names = [interface.step.input.name, *(() if interface.step.lengths is None else (interface.step.lengths.name,))]
    values = [tokens, lengths][: len(names)] + carried
    given = dict(zip([*names, *(tensor.name for tensor in interface.carried_inputs)], values, strict=True))
    given |= {one.name: np.array(one.values, one.dtype).reshape(one.shape) for one in interface.step.constants}
    feeds = {node.name: given[node.name] for node in session.get_inputs()}
    traced = dict(zip([output.name for output in spec.outputs], session.run(None, feeds), strict=True))
    found = [traced[name][:, 0] for name in traced if name.endswith((".hidden", ".cell"))]
    axes = [state.input.shape.index("batch") for state in interface.states]
    rows_first = [np.moveaxis(state, axis, 0) for state, axis in zip(states, axes, strict=True)]
    known = np.concatenate([state.reshape(len(rows), -1) for state in rows_first], axis=1)
    for tensor in found:
        place = _find_columns(known, tensor)
        if place is None:
            raise ExportError("the trace has a state that equals no state of the step graph")


def _find_columns(known: NDArray[np.float32], tensor: NDArray[np.float32]) -> int | None:
    """Returns the first column of `known` at which the columns of `tensor` are, within `TRACE`; None: nowhere."""
    width = tensor.shape[1]
    for place in range(known.shape[1] - width + 1):
        if np.abs(known[:, place : place + width] - tensor).max() <= tolerances.TRACE:
            return place
    return None


def _random(tensor: TensorSpec, num_rows: int, generator: np.random.Generator) -> NDArray[np.generic]:
    """Returns random values of a state or a context. Booleans are all true; a context has 8 source tokens."""
    sizes = {"batch": num_rows, "source": 8}
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
    if tensor.dtype == "bool":
        return np.ones(shape, np.bool_)
    return (generator.standard_normal(shape) * 0.5).astype(tensor.dtype)
