"""Compares several steps at once with single steps, in a file's own graph. A file that differs cannot serve a stream.

A file whose time axis has no size claims to take several steps. Run at once from zero states, they must give the same
as one by one, each with the states of the step before. A layer that looks ahead, or that keeps something that is no
state of the file, gives something else. This check finds it before anything is served.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from export.errors import ExportError, first_line
from export.foreign.causes import of_steps
from export.foreign.original import Original
from export.foreign.reading import Reading
from export.proofs.runners import Array
from export.proofs.tolerances import SEVERAL_STEPS
from export.surgery import RECURRENT

NUM_STEPS = 7
_ACROSS_TIME = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "InstanceNormalization", "CumSum", "STFT", "Resize")
"""Operators that combine neighbours along an axis that is usually time."""


def check_over_time(model: onnx.ModelProto, reading: Reading, original: Original, vocabulary_size: int | None) -> str:
    """Compares several steps at once with single steps. Returns a note for the user; empty if nothing was compared:
    the file takes one step, or it has a start input or a window.

    vocabulary_size: of the tokens that the file reads. Raises ExportError that names the first output that differs, by
    how much, and the likely cause.
    """
    if reading.start is not None or any(len(part.time_axes) != 1 or part.window for part in reading.inputs):
        return ""
    steps = original.draw(NUM_STEPS, vocabulary_size)
    try:
        outputs, states = original.run_at_once(steps)
    except Exception as error:  # ONNX Runtime raises its own error classes
        return f"several steps at once were not checked, because the file cannot run them: {first_line(error)}"
    carried, one_by_one = original.zeros(), []
    for step in steps:
        given, carried = original.run(step, carried)
        one_by_one.append(given)
    for output, found, expected in zip(reading.outputs, outputs, zip(*one_by_one, strict=True), strict=True):
        _hold_equal(output.tensor.name, _over_time(found, expected), expected, model, reading)
    for state, found, last in zip(reading.states, states, carried, strict=True):
        _hold_equal(state.output, [found], [last], model, reading)
    return f"{NUM_STEPS} steps at once return the same as one by one"


def _over_time(at_once: Array, outputs: Sequence[Array]) -> list[Array]:
    """Splits an output of several steps into single steps, along the axis that has grown; or returns it as the last
    step's alone if none has."""
    one = outputs[-1]
    grown = [
        place
        for place, (size, single) in enumerate(zip(at_once.shape, one.shape, strict=False))
        if size == single * NUM_STEPS
    ]
    if at_once.ndim != one.ndim or not grown:
        return [at_once]
    return np.split(at_once, NUM_STEPS, axis=grown[0])


def _hold_equal(
    name: str, found: Sequence[Array], expected: Sequence[Array], model: onnx.ModelProto, reading: Reading
) -> None:
    for step, (one, other) in enumerate(zip(found, expected[-len(found) :], strict=True)):
        if one.shape != other.shape:
            raise ExportError(
                f"{name} is {list(one.shape)} after {NUM_STEPS} steps at once, but {list(other.shape)} after each of"
                f" them. {_cause(model, reading)}"
            )
        off = np.abs(one.astype(np.float64) - other.astype(np.float64))
        if not np.all(off <= _tolerance(model) * np.maximum(1.0, np.abs(other.astype(np.float64)))):
            where = f"at step {step + 1} of {NUM_STEPS}" if len(found) > 1 else f"after {NUM_STEPS} steps"
            raise ExportError(
                f"{name} differs between steps one by one and at once, by up to {off.max():.3g} {where}."
                f" {_cause(model, reading)}"
            )


def _tolerance(model: onnx.ModelProto) -> float:
    """Returns the allowed difference: 16-bit states are rounded after each step, but not inside a run."""
    has_halves = any(one.data_type == onnx.TensorProto.FLOAT16 for one in model.graph.initializer)
    return NUM_STEPS * float(np.finfo(np.float16).eps) if has_halves else SEVERAL_STEPS


def _cause(model: onnx.ModelProto, reading: Reading) -> str:
    """Returns the likely cause and what helps, in one sentence."""
    nodes = list(model.graph.node)
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type in RECURRENT and attribute.name == "direction" and attribute.s != b"forward":
                return (
                    f"Its {node.op_type} {_named(node)} runs {attribute.s.decode()}: it needs the end of a sequence"
                    " first, so it cannot be served step by step"
                )
    carried = _reached(model.graph, [state.input.name for state in reading.states])
    for node in nodes:
        if node.op_type in RECURRENT and not carried.intersection(node.input[5:6]):
            return (
                f"Its {node.op_type} {_named(node)} starts from zero in each run: its state is not an input of the"
                " file. Use --expose-state"
            )
    if why := of_steps(model, reading):
        return why
    for node in nodes:
        if node.op_type in _ACROSS_TIME:
            return (
                f"Its {node.op_type} {_named(node)} combines neighbouring steps: export the module with the earlier"
                " steps that it needs as a state"
            )
    return "The file keeps something from step to step that is not one of its states, or a step reads later steps"


def _reached(graph: onnx.GraphProto, names: Sequence[str]) -> set[str]:
    """Returns all values that depend on the inputs `names`."""
    reached = set(names)
    for node in graph.node:  # nodes are in execution order
        inner = [name for attribute in node.attribute for one in attribute.g.node for name in one.input]
        if reached.intersection([*node.input, *inner]):
            reached.update(node.output)
    return reached


def _named(node: onnx.NodeProto) -> str:
    return repr(node.name or node.output[0])
