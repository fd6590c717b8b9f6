"""Why rows or steps of an ONNX file may depend on those beside them in a run: likely causes, read off its graph.

Nothing is run here, and nothing decided: proofs find that something differs, and this says why, and what helps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import onnx

from export.foreign.reading import Reading, StepOutput

_DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul")
"""Operators that take the scale of what they read from the smallest and largest value of all of it."""
_WITHOUT = "without dynamic quantization (in 32-bit floats, or quantized statically)"


def of_company(model: onnx.ModelProto, reading: Reading, sizes: Sequence[int]) -> str:
    """Why a row may be another beside other rows, and what helps; empty when nothing is known of it. sizes: numbers of
    each output, of one row."""
    if node := _quantized(model):
        return (
            f"{node} is quantized dynamically: its scale is taken over all rows of a run, so that each row changes the"
            f" others. Export the module {_WITHOUT}, and rows share a run"
        )
    for output, size in zip(reading.outputs, sizes, strict=True):
        if _is_of_one_row(output, size):
            return (
                f"{output.tensor} has no axis for rows. Export it with one, ahead of the others, and rows share a run"
            )
    return ""


def of_steps(model: onnx.ModelProto, reading: Reading) -> str:
    """Why several steps at once may be others than steps one by one; empty when nothing is known of it."""
    node = _quantized(model)
    if not node:
        return ""
    axes = {part.tensor.shape[place] for part in reading.inputs for place in part.time_axes}
    flags = " ".join(f"--axis {name}=1" for name in sorted(map(str, axes)))
    return (
        f"Its {node} is quantized dynamically: its scale is taken over all steps of a run, so that each step changes"
        f" the others. Serve it one step at a time with {flags}, which leaves this comparison out, or export the module"
        f" {_WITHOUT}"
    )


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether rows of a run change each other a little, because their scale is common."""
    return bool(_quantized(model))


def _is_of_one_row(output: StepOutput, size: int) -> bool:
    """Whether an output has no axis for rows: its axes have sizes, and hold what one row gives. size: of that."""
    sizes = [axis for axis in output.tensor.shape if isinstance(axis, int)]
    has_row = bool(sizes) and output.tensor.shape[output.batch_axis] == 1
    return len(sizes) == len(output.tensor.shape) and prod(sizes) == size and not has_row


def _quantized(model: onnx.ModelProto) -> str:
    """The first node that quantizes dynamically, as an error names it; empty when there is none."""
    for node in _nodes(model.graph):
        if node.op_type in _DYNAMIC:
            return f"{node.op_type} {node.name or node.output[0]!r}"
    return ""


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Those of a graph and of the graphs within it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
