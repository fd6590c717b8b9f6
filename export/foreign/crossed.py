"""States of plain cells that flags have crossed: a cell state that is fed as a hidden state, and the other way round.

What is kept is multiplied by a gate and added to, and nothing else is done to it: c' = f c + i g, h' = (1 - z) n + z h.
An input that becomes an output so is carried to it. A pair is crossed where its output is what another input is carried
to; that input is paired with an output to which it is not carried, as the pair's own is not; and exchanged, each output
would come of its input. The last keeps lines of delays apart, in which each becomes the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx

from export.errors import ExportError
from export.foreign.unkept import FORCED

if TYPE_CHECKING:
    from export.foreign.axes import Hints
    from export.foreign.wiring import Wiring

_MOVES = ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Cast", "Concat")
_ADDS = ("Add", "Sub", "Sum")


def refuse_crossed(
    model: onnx.ModelProto, wiring: Wiring, pairs: Mapping[str, str], hints: Hints, notes: list[str]
) -> None:
    """Raises ExportError for a told pair that is crossed with another. pairs: state outputs by state input. Adds a note
    where --force-state lets it through."""
    carried = {name: _carried(model.graph, name) for name in pairs}
    for name, output in pairs.items():
        if name not in hints.states or output in carried[name]:
            continue
        for other, given in pairs.items():
            if output not in carried[other] or given in carried[other] or given not in wiring.reached(name):
                continue
            said = f"{output} is {other} times a gate, plus what is new, so that {other} becomes {output}"
            if not hints.force_state:
                raise ExportError(
                    f"--state {name}={output} contradicts the graph: {said}. Say --state {other}={output}, or give"
                    " --force-state too"
                )
            notes.append(f"state {name} = {output}: {FORCED}, although {said}")


def _carried(graph: onnx.GraphProto, name: str) -> set[str]:
    """The outputs that an input is carried to, in the graph itself: branches and bodies are not looked into."""
    constants = {one.name for one in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    reached = {name: {(False, False)}}  # whether there was a gate, and whether it was added to
    for node in graph.node:  # in the order in which they run
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
