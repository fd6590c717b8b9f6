"""Finds likely causes, in an ONNX graph, why rows or steps depend on others in the same run.

Runs nothing and decides nothing: the proofs find the difference, and this explains it and says what helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx

from export.foreign.reading import Reading, StepOutput
from export.surgery import nodes_in

_DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul")
"""Operators that take their scale from the smallest and largest value of their whole input."""
_WITHOUT = "without dynamic quantization (in 32-bit floats, or quantized statically)"


def of_other_rows(model: onnx.ModelProto, reading: Reading, sizes: Sequence[int]) -> str:
    """Returns why a row may differ in a batch, and what helps; empty if no cause is known.

    sizes: how many numbers each output has for one row.
    """
    if node := _quantized(model):
        return (
            f"{node} is quantized dynamically: its scale is taken over all rows of a run, so that each row changes the"
            f" others. Export the module {_WITHOUT}; then several rows can run together"
        )
    for output, size in zip(reading.outputs, sizes, strict=True):
        if _is_of_one_row(output, size):
            return (
                f"{output.tensor} has no batch axis. Export it with one, as its first axis; then several rows can run"
                " together"
            )
    return ""


def of_steps(model: onnx.ModelProto, reading: Reading) -> str:
    """Returns why several steps at once may differ from steps one by one; empty if no cause is known."""
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
    """Whether rows of a run change each other slightly, because they share a quantization scale."""
    return bool(_quantized(model))


def _is_of_one_row(output: StepOutput, size: int) -> bool:
    """Whether an output has no batch axis: all its axes have sizes, for exactly the `size` numbers of one row."""
    sizes = [axis for axis in output.tensor.shape if isinstance(axis, int)]
    has_row = bool(sizes) and output.tensor.shape[output.batch_axis] == 1
    return len(sizes) == len(output.tensor.shape) and prod(sizes) == size and not has_row


def _quantized(model: onnx.ModelProto) -> str:
    """Returns the name, for messages, of the first node that quantizes dynamically; empty if there is none."""
    for node in nodes_in(model.graph):
        if node.op_type in _DYNAMIC:
            return f"{node.op_type} {node.name or node.output[0]!r}"
    return ""
