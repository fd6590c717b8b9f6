"""`--expose-state`: turns the states of recurrent nodes that a file does not expose into inputs and outputs.

1. A new input replaces a node's initial state, which must be zero in the file. The node's last state becomes an output.
2. The file's outputs that are only such last states are removed. The outputs of a step stay.
3. A time axis of a fixed length gets the length 1.
4. The original file, run over a whole sequence, must give the same as the new graph run step by step from zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from export.errors import ExportError
from export.foreign.axes import Hints, batch_name, declared
from export.foreign.flow import Slot
from export.foreign.reading import Reading, read
from export.foreign.unkept import named, nodes_over_time, refuse_backward
from export.foreign.whole import Whole
from export.foreign.wiring import Wiring
from export.surgery import copy_of, refill


def expose_states(model: onnx.ModelProto, hints: Hints) -> tuple[onnx.ModelProto, list[str]]:
    """Returns the model with its states as inputs and outputs, and notes; the model itself without --expose-state.

    Raises ExportError when no state is hidden, when one cannot be exposed, and when steps differ from the whole
    sequence.
    """
    if not hints.expose_state:
        return model, []
    inputs, outputs = declared(model, hints)
    wiring = Wiring(model, inputs, outputs)
    slots = nodes_over_time(wiring, _declared_states(wiring))
    if not slots:
        raise ExportError("--expose-state: the file has no LSTM, GRU or RNN node that reads its time axis")
    refuse_backward(wiring, slots, hints)
    hidden = [slot for slot in slots if not _is_open(wiring, slot)]
    if not hidden:
        raise ExportError(f"--expose-state: the states of {named(slots)} are inputs and outputs already: omit the flag")
    inside = [slot for slot in hidden if slot.graph != 0]
    if inside:
        raise ExportError(f"--expose-state: {named(inside)} is in a branch of an If, where its state cannot be exposed")
    fed = [slot for slot in hidden if any(slot in wiring.starts(name) for name in inputs)]
    exposed = copy_of(model)
    added = {slot: _expose(exposed, wiring, slot, hints, is_fed=slot in fed) for slot in hidden}
    _leave_out(exposed, wiring, hidden, hints)
    reading = read(exposed, hints)
    if len(reading.inputs) > 1:
        raise ExportError("--expose-state works for files whose step reads one input; this one reads several")
    length = wiring.length(hidden[0])
    time_axis = _time_axis(reading, length)
    num_steps = _one_step(exposed, reading, time_axis)
    if num_steps is not None:
        reading = read(exposed, hints)
    first = {slot.initial: slot for slot in hidden if slot not in fed and slot.initial is not None}
    whole = Whole(model, exposed, reading, time_axis, num_steps)
    for slot, values in zip(first.values(), whole.values(list(first)), strict=True):
        if np.any(values):
            raise ExportError(
                f"--expose-state: the first {slot.part} state of {slot} is not zero, but sessions begin at zero"
            )
    whole.check()
    notes = [f"the {slot.part} state of {slot} is now {name}" for slot, name in added.items()]
    return exposed, [*notes, whole.note]


def _declared_states(wiring: Wiring) -> list[str]:
    """Returns the inputs that are the first value of a slot whose last value is an output."""
    ended = frozenset[Slot]().union(*(wiring.ends(name) for name in wiring.outputs if wiring.is_last(name)))
    return [name for name in wiring.inputs if wiring.starts(name) & ended]


def _is_open(wiring: Wiring, slot: Slot) -> bool:
    return any(slot in wiring.starts(name) for name in wiring.inputs) and any(
        slot in wiring.ends(name) for name in wiring.outputs if wiring.is_last(name)
    )


def _expose(model: onnx.ModelProto, wiring: Wiring, slot: Slot, hints: Hints, *, is_fed: bool) -> str:
    """Makes a slot an output, and an input unless an input feeds it already. Returns the new names, for a note."""
    graph = model.graph
    node = graph.node[slot.node]
    place = 5 if slot.part == "hidden" else 6
    name = _new_name(graph, f"{(node.name or f'{slot.op_type}_{slot.node}').strip('/').replace('/', '.')}.{slot.part}")
    size = slot.hidden_size
    rows = _rows(wiring, slot, hints)
    kind = wiring.element_type(slot)
    shape = [rows, 1, size] if slot.is_batch_first else [1, rows, size]
    if not is_fed:
        node.input.extend([""] * (place + 1 - len(node.input)))
        node.input[place] = name
        graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    node.output.extend([""] * (place - 3 - len(node.output)))
    last = f"{name}_out"
    if node.output[place - 4]:
        graph.node.append(helper.make_node("Identity", [node.output[place - 4]], [last]))
    else:
        node.output[place - 4] = last
    graph.output.append(helper.make_tensor_value_info(last, kind, shape))
    return f"the output {last}" if is_fed else f"the input {name} and the output {last}"


def _rows(wiring: Wiring, slot: Slot, hints: Hints) -> str | int:
    """Returns a state's batch axis: its name in the step's input, or 1 if the number of rows is fixed."""
    for name, tensor in wiring.inputs.items():
        is_other = (
            name in hints.other_roles or bool(wiring.starts(name)) or (bool(hints.inputs) and name not in hints.inputs)
        )
        if not is_other and slot.source in wiring.flow.reach([(0, name)], ["moves", "computes", "recurs"]):
            return batch_name(tensor, {**wiring.inputs, **wiring.outputs}, hints)
    return 1


def _new_name(graph: onnx.GraphProto, name: str) -> str:
    taken = {one for node in graph.node for one in (*node.input, *node.output)}
    taken |= {one.name for one in graph.input} | {one.name for one in graph.output}
    while name in taken or f"{name}_out" in taken:
        name += "_"
    return name


def _leave_out(model: onnx.ModelProto, wiring: Wiring, exposed: Sequence[Slot], hints: Hints) -> None:
    """Removes the file's outputs that are only last values of exposed slots, but keeps at least one output."""
    graph = model.graph
    own = [one.name for one in graph.output if one.name in wiring.outputs]
    spare = [
        name
        for name in own
        if wiring.is_last(name) and wiring.ends(name) <= set(exposed) and name not in (*hints.outputs, *hints.states)
    ]
    if len(spare) == len(own):  # then a step's output is its state
        spare = spare[1:]
    refill(graph.output, [one for one in graph.output if one.name not in spare])


def _time_axis(reading: Reading, length: int | None) -> int | None:
    """Returns the axis of the step's input that counts steps; None if there is none."""
    step, source = reading.inputs[0], reading.inputs[0].tensor
    places = [place for place in range(len(source.shape)) if place != step.batch_axis]
    dynamic = [place for place in places if isinstance(source.shape[place], str) and step.shape[place] == 1]
    if dynamic:
        return dynamic[0]
    if length is None or length == 1:
        return None
    return next((place for place in places if source.shape[place] == length), None)


def _one_step(model: onnx.ModelProto, reading: Reading, time_axis: int | None) -> int | None:
    """Sets a time axis of a fixed length to length 1. Returns the old length; None if it is not fixed."""
    if time_axis is None or isinstance(reading.inputs[0].tensor.shape[time_axis], str):
        return None
    graph = model.graph
    num_steps = int(reading.inputs[0].tensor.shape[time_axis])
    source = next(one for one in graph.input if one.name == reading.inputs[0].tensor.name)
    source.type.tensor_type.shape.dim[time_axis].dim_value = 1
    states = {state.output for state in reading.states}
    for one in graph.output:
        if one.name not in states:
            one.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    return num_steps
