"""Handles inputs with a default value in the file: an initializer of the same name.

A run need not give them, and most are weights that an exporter lists as inputs. But a state among them would silently
have its default in every step. So such an input counts as one if a flag names it, or if the graph or its name pairs it
with an output.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from export.errors import ExportError
from export.foreign.axes import Hints, Tensor, tensor_of
from export.foreign.pairing import differ_in_time
from export.foreign.wiring import Wiring, may_be
from export.surgery import refill


def open_defaults(model: onnx.ModelProto, hints: Hints) -> tuple[Hints, list[str]]:
    """Removes from the model the default values of inputs that are states or that flags name.

    Returns the hints, with these defaults as first values of states, and notes about them and about inputs that keep
    their default.
    """
    values = {one.name: one for one in model.graph.initializer}
    listed = {one.name: one for one in model.graph.input}
    defaults = {name: tensor for name, one in listed.items() if name in values and (tensor := _served(one, hints))}
    if not defaults:
        return hints, []
    given = {name: tensor for name, one in listed.items() if name not in values and (tensor := _served(one, hints))}
    outputs = {one.name: tensor for one in model.graph.output if (tensor := _served(one, hints))}
    wiring = Wiring(model, given | defaults, outputs)
    others = {*hints.other_roles, *hints.inputs, *hints.windows, hints.end}
    flags = {*hints.states, *others}
    states = {name for name, tensor in defaults.items() if name in hints.states or _is_state(wiring, tensor)}
    notes = []
    initial = dict(hints.initial)
    for name, tensor in defaults.items():
        if name in states - others:
            value = numpy_helper.to_array(values[name])
            begins = "that" if np.any(value) else "zero"
            if np.any(value):
                initial.setdefault(name, value)
            notes.append(f"input {name} has a default value in the file and is a state: its first value is {begins}")
        elif name not in flags and any(isinstance(axis, str) for axis in tensor.shape):
            notes.append(
                f"input {name} keeps its default value: use --input {name} or --state {name}=OUTPUT to change that"
            )
    left = [one for name, one in values.items() if name not in defaults or name not in states | flags]
    refill(model.graph.initializer, left)
    return replace(hints, initial=initial), notes


def _served(value: onnx.ValueInfoProto, hints: Hints) -> Tensor | None:
    """Returns the tensor; None for a type that is not served, such as a quantized weight."""
    try:
        return tensor_of(value, hints)
    except ExportError:
        return None


def _is_state(wiring: Wiring, tensor: Tensor) -> bool:
    """Whether an input with a default is a state.

    Either a recurrent node starts with it and ends with an output, or an output of its shape depends on it and has a
    related name.
    """
    name = tensor.name
    for output in wiring.reached(name):
        if not may_be(tensor, wiring.outputs[output]) or not tensor.shape:
            continue
        if wiring.is_last(output) and wiring.starts(name) & wiring.ends(output):
            return True
        if differ_in_time(name, output):
            return True
    return False
