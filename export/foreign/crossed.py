"""Finds states of plain cells that flags have crossed: for example, a cell state that is fed back as a hidden state.

A plain cell multiplies its state by a gate and adds to it: c' = f c + i g, h' = (1 - z) n + z h. An input that reaches
an output in this way is "carried" to it. A pair (a, a') from a flag is crossed with a pair (b, b') when:
1. b is carried to a', and a is not.
2. b is not carried to b'.
3. b' depends on a. This excludes delay lines, in which each state becomes the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx

from export.errors import ExportError
from export.foreign.notes import Forced

if TYPE_CHECKING:
    from export.foreign.axes import Hints
    from export.foreign.wiring import Wiring

_MOVES = ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Cast", "Concat")
_ADDS = ("Add", "Sub", "Sum")


def refuse_crossed(
    model: onnx.ModelProto, wiring: Wiring, pairs: Mapping[str, str], hints: Hints, notes: list[str]
) -> None:
    """Raises ExportError for a flag's pair that is crossed with another pair.

    pairs: state outputs by state input. With --force-state, adds a note instead.
    """
    carried = {name: _carried(model.graph, name) for name in pairs}
    for name, output in pairs.items():
        if name not in hints.states or output in carried[name]:
            continue
        for other, given in pairs.items():
            if output not in carried[other] or given in carried[other] or given not in wiring.reached(name):
                continue
            said = f"{output} is {other} multiplied by a gate plus new values, so it is the next value of {other}"
            if not hints.force_state:
                raise ExportError(
                    f"--state {name}={output} contradicts the graph: {said}. Use --state {other}={output}, or add"
                    " --force-state"
                )
            notes.append(Forced(f"state {name} = {output}", said))


def _carried(graph: onnx.GraphProto, name: str) -> set[str]:
    """Returns the outputs that an input is carried to in the graph itself, without branches and bodies."""
    constants = {one.name for one in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    reached = {name: {(False, False)}}  # for each path: whether it has passed a gate, and whether an addition
    for node in graph.node:  # nodes are in execution order
        is_product = node.op_type == "Mul"
        if not (is_product or node.op_type in (*_MOVES, *_ADDS)):
            continue
        for place, source in enumerate(node.input):
            if source not in reached or (node.op_type in _MOVES[:-1] and place):
                continue
            is_gated = is_product and node.input[1 - place] not in constants
            is_sum = node.op_type in _ADDS
            after = {(gate or is_gated, added or is_sum) for gate, added in reached[source]}
            for one in node.output:
                reached[one] = reached.get(one, set()) | after
    return {one.name for one in graph.output if (True, True) in reached.get(one.name, set())}
