"""Pairs state inputs with state outputs of an ONNX file by following its graph.

1. A recurrent node pairs the input that becomes its first hidden or cell state with the output made from its last one.
   The same holds for variables that a `Loop` or a `Scan` carries.
2. Other inputs are paired along a path from input to output, if type and shape leave one choice.
3. Names break ties. They decide alone if an input reaches no output of its shape.
4. A pair from flags that contradicts the graph is refused, and so is a recurrent node whose state is not kept from step
   to step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx

from export.errors import ExportError
from export.foreign.axes import listed
from export.foreign.crossed import refuse_crossed
from export.foreign.notes import Forced
from export.foreign.unkept import refuse_unkept
from export.foreign.wiring import Wiring, may_be

if TYPE_CHECKING:
    from export.foreign.axes import Hints, Tensor

_AFFIXES = re.compile(
    r"^(?:next|new|out|outputs?|updated|final|last|initial|init|prev|previous|past|present|in|inputs?)_"
    r"|_(?:next|new|out|outputs?|updated|final|last|initial|init|prev|previous|past|present|in|inputs?)$"
    r"|_?[n0t]$"
)
_Tensors = Mapping[str, "Tensor"]


def pair_states(
    model: onnx.ModelProto, inputs: _Tensors, outputs: _Tensors, hints: Hints, notes: list[str]
) -> dict[str, str]:
    """Returns state outputs by state input: those from flags, then those found.

    Adds to `notes` why each pair was found. Raises ExportError for a file without states, for states that are lost
    between steps, and for a pair from flags that the graph contradicts.
    """
    if hints.states_are_complete:
        return dict(hints.states)
    wiring = Wiring(model, inputs, outputs)
    for name, output in hints.states.items():
        _check_given(wiring, inputs[name], outputs[output], hints, notes)
    pairs = dict(hints.states)
    left = {
        name: tensor
        for name, tensor in inputs.items()
        if name not in (*pairs, *hints.other_roles, *hints.inputs, hints.end)
    }
    free = {name: one for name, one in outputs.items() if name not in pairs.values() and name not in hints.outputs}
    found = _by_nodes(wiring, left, free, hints)
    for name, (output, _) in found.items():
        del left[name], free[output]
    by_moves = any(wiring.starts(name) for name in (*hints.states, *found))
    found |= _by_paths(wiring, left, free, hints, by_moves=by_moves)
    for name in inputs:
        if name in found:
            pairs[name], why = found[name]
            notes.append(f"state {name} = {pairs[name]}: {why}")
    refuse_unkept(wiring, pairs, hints, notes)
    refuse_crossed(model, wiring, pairs, hints, notes)
    if not pairs:
        alike = [
            f"--state {one.name}={other.name}"
            for one in inputs.values()
            for other in outputs.values()
            if may_be(one, other) and len(one.shape) > 1
        ]
        same_shape = f"; these have one shape: {' '.join(alike)}" if alike else ""
        raise ExportError(
            f"no state was found: give each pair with --state INPUT=OUTPUT. Inputs: {listed(inputs)}."
            f" Outputs: {listed(outputs)}{same_shape}"
        )
    return pairs


def _check_given(wiring: Wiring, one: Tensor, other: Tensor, hints: Hints, notes: list[str]) -> None:
    """Refuses a pair from flags that a recurrent node contradicts. A later run finds pairs of different shapes."""
    starts = wiring.starts(one.name)
    ends = wiring.ends(other.name)
    if not may_be(one, other) or not (starts or ends) or starts & ends:
        return
    if starts:
        slot = min(starts, key=str)
        belongs = [name for name in wiring.outputs if wiring.ends(name) & starts]
        if not belongs and not ends:
            return  # the graph says nothing against the pair
        said = f"{slot} starts with {one.name} as its {slot.part} state"
        ended = f", and ends with {' or '.join(belongs)}" if belongs else f", and {other.name} belongs to another state"
    else:
        slot = min(ends, key=str)
        begins = [name for name in wiring.inputs if slot in wiring.starts(name)]
        said = f"{other.name} is the last {slot.part} state of {slot}"
        ended = f", which starts with {' or '.join(begins)}" if begins else f", which does not start with {one.name}"
    if hints.force_state:
        notes.append(Forced(f"state {one.name} = {other.name}", f"{said}{ended}"))
        return
    raise ExportError(
        f"--state {one.name}={other.name} contradicts the graph: {said}{ended}. Omit the pair, or add --force-state"
    )


def _by_nodes(wiring: Wiring, inputs: _Tensors, outputs: _Tensors, hints: Hints) -> dict[str, tuple[str, str]]:
    """Returns outputs by input, with the reason, as recurrent nodes pair them."""
    found: dict[str, tuple[str, str]] = {}
    taken: set[str] = set()
    certain = sorted(inputs, key=lambda name: not wiring.is_moved(name))  # inputs that a node takes unchanged first
    for name in certain:
        starts = wiring.starts(name)
        if not any(slot.is_recurrent for slot in starts) and len(inputs) - len(found) <= (not hints.inputs):
            continue  # a loop may also carry the step's own input
        choices = [one for one in outputs if one not in taken and may_be(inputs[name], outputs[one])]
        choices = [one for one in choices if wiring.ends(one) & starts]
        has_more = len(outputs) - len(taken) > (not hints.outputs)  # one output must remain for the step
        choices = [one for one in choices if wiring.is_last(one) or (has_more and _is_step(inputs[name], outputs[one]))]
        if not starts or not choices or not _is_alone(wiring, name, inputs, outputs[choices[0]]):
            continue

        def rank(place: int, name: str = name, choices: list[str] = choices) -> tuple[bool, bool, bool, bool, int]:
            """Prefers last values themselves, for all slots, of the same shape, with a related name, and late ones."""
            output = choices[place]
            is_last, ends = wiring.is_last(output), wiring.ends(output)
            is_same = outputs[output].shape == inputs[name].shape
            return is_last, ends == wiring.starts(name), is_same, differ_in_time(name, output), place

        output = choices[max(range(len(choices)), key=rank)]
        taken.add(output)
        slot = min(wiring.starts(name) & wiring.ends(output), key=str)
        says = f"{slot} connects them"
        if differ_in_time(name, output):
            found[name] = output, f"same shape and related names; {says}"
        else:
            found[name] = output, says
    return found


def _is_step(one: Tensor, other: Tensor) -> bool:
    """Whether an output of all steps has a state's shape when there is one step: one axis may be the time axis."""
    return sum(left != right for left, right in zip(one.shape, other.shape, strict=False)) <= 1


def _is_alone(wiring: Wiring, name: str, inputs: _Tensors, output: Tensor) -> bool:
    """Whether no other input may be the one from which a node computes its first state."""
    if wiring.is_moved(name):
        return True
    rivals = [
        other
        for other, tensor in inputs.items()
        if may_be(tensor, output) and wiring.starts(other) & wiring.starts(name) and not wiring.is_moved(other)
    ]
    kindred = [other for other in rivals if differ_in_time(other, output.name)]
    return name in kindred if len(kindred) == 1 else rivals == [name]


def _by_paths(
    wiring: Wiring, inputs: _Tensors, outputs: _Tensors, hints: Hints, *, by_moves: bool
) -> dict[str, tuple[str, str]]:
    """Returns outputs by input, with the reason, for states outside recurrent nodes: plain cells and caches.

    by_moves: whether other pairs are known. Then a further pair needs related names, or an output with the input's own
    values: another input, such as a mask, is no state even if it reaches an output of its shape.
    """
    found: dict[str, tuple[str, str]] = {}
    left = {name: one for name, one in inputs.items() if one.shape}
    free = dict(outputs)

    def take(name: str, output: str, why: str) -> None:
        found[name] = output, why
        del left[name], free[output]

    # first, the one output whose shape fits and whose name differs only in words for before and after
    for name, tensor in list(left.items()):
        alike = [one for one in free if may_be(tensor, free[one])]
        reached = wiring.reached(name)
        kindred = [one for one in alike if one in reached] or alike
        kindred = [one for one in kindred if _stem(one) == _stem(name)]
        if len(kindred) == 1:
            take(name, kindred[0], "same shape and related names")
    by_moves = by_moves or bool(found)
    # then, repeatedly, inputs with one possible output, if that is the one possible output of no other input
    unique = list(left)
    while unique:
        choices = {name: _choices(wiring, one, free, by_moves=by_moves) for name, one in left.items()}
        sole_choices = [output for names in choices.values() if len(names) == 1 for output in names]
        unreached = [one for one in left.values() if not _choices(wiring, one, free, by_moves=False)]
        unique = [
            name
            for name, names in choices.items()
            if len(names) == 1
            and sole_choices.count(next(iter(names))) == 1
            and not any(may_be(one, free[next(iter(names))]) for one in unreached)  # a step may replace such a state
        ]
        num_inputs = len(left) - (not hints.inputs)  # one input must remain for the step
        num_outputs = len(free) - (not hints.outputs)
        if min(num_inputs, num_outputs) < len(unique):
            break  # it is unknown which of them is no state
        for name in unique:
            take(name, next(iter(choices[name])), "the only output of its shape that depends on it")
    return found


def _choices(wiring: Wiring, tensor: Tensor, outputs: _Tensors, *, by_moves: bool) -> set[str]:
    """Returns the outputs that depend on an input and may be its next value; of these, those of its shape if any."""
    reached = wiring.reached(tensor.name, by_moves=by_moves)
    alike = {name for name in reached if name in outputs and may_be(tensor, outputs[name])}
    return {name for name in alike if outputs[name].shape == tensor.shape} or alike


def differ_in_time(name: str, other: str) -> bool:
    """Whether names differ only in words for before and after."""
    return _stem(name) == _stem(other)


def _stem(name: str) -> str:
    """Returns a name without the words for before and after."""
    stem = re.sub(r"[.:/]", "_", name.lower()).strip("_")
    while (shorter := _AFFIXES.sub("", stem).strip("_")) and shorter != stem:
        stem = shorter
    return stem
