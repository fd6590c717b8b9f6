"""Finds recurrent nodes over the stream's time whose state is not kept from step to step: serving them would be wrong.

Nodes over the frequencies of one frame are fine: they begin at zero in every step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from export.errors import ExportError
from export.foreign.flow import Slot
from export.foreign.notes import Forced
from export.foreign.wiring import Wiring, may_be

if TYPE_CHECKING:
    from export.foreign.axes import Hints


def refuse_unkept(wiring: Wiring, pairs: Mapping[str, str], hints: Hints, notes: list[str]) -> None:
    """Raises ExportError that names the nodes over time that run backward, or whose state is in no pair."""
    slots = nodes_over_time(wiring, pairs)
    refuse_backward(wiring, slots, hints)
    unkept = [
        slot for slot in slots if not _is_kept(wiring, slot, pairs) and not _is_given_by_flag(wiring, slot, hints)
    ]
    if pairs and any(slot.graph for slot in unkept):  # such as a branch for the first step or another sampling rate
        inside = [slot for slot in unkept if slot.graph]
        notes.append(
            f"{named(inside)}, in a branch of an If, keep no state: it is assumed that streams use other branches"
        )
        unkept = [slot for slot in unkept if not slot.graph]
    if not unkept:
        return
    begins = [slot for slot in unkept if not _begins(wiring, slot)]
    is_one = len({slot.owner for slot in begins or unkept}) == 1
    if begins:
        why = (
            f"start{'s' if is_one else ''} from a constant in every step, because no input is"
            f" {'its' if is_one else 'their'} first state"
        )
    else:
        why = (
            f"lose{'s' if is_one else ''} the state after every step, because no output is"
            f" {'its' if is_one else 'their'} last state"
        )
    message = f"{named(begins or unkept)} {why}"
    if hints.force_state and pairs:
        notes.append(Forced(message))
        return
    found = "no state was found: " if not pairs else ""
    if hints.expose_state:
        advice = "--expose-state cannot give it one: export the file with each node's state as an input and an output"
    else:
        advice = "--expose-state makes such states inputs and outputs"
    otherwise = ". If this is intended, use --force-state" if pairs else ""
    raise ExportError(f"{found}{message}. {advice}{otherwise}")


def refuse_backward(wiring: Wiring, slots: Iterable[Slot], hints: Hints) -> None:
    """Raises ExportError for a node that reads later steps. --force-state allows those of unknown length only."""
    for slot in slots:
        if slot.direction != "forward" and not (hints.force_state and wiring.length(slot) is None):
            raise ExportError(
                f"{slot} needs the whole sequence, because its direction is {slot.direction}: it cannot be served one"
                " step at a time"
            )


def nodes_over_time(wiring: Wiring, pairs: Collection[str]) -> list[Slot]:
    """Returns the slots of recurrent nodes that read the stream's time.

    Such a node reads one element in a step, or an unknown number, or as many as a node whose state is in a pair. If
    there is no such node and no pair, it reads as many as the node that reads the fewest. pairs: the state inputs.
    """
    slots = [slot for slot in wiring.flow.slots if slot.is_recurrent and not slot.is_in_loop and wiring.is_used(slot)]
    lengths = {slot: wiring.length(slot) for slot in slots}
    over_time = {1, None} | {length for slot, length in lengths.items() if _begins(wiring, slot) & set(pairs)}
    if not pairs and not over_time.intersection(lengths.values()):
        over_time.add(min((length for length in lengths.values() if length is not None), default=None))
    return [slot for slot in slots if lengths[slot] in over_time]


def named(slots: Sequence[Slot]) -> str:
    """Returns the nodes of slots, as messages name them."""
    nodes = {slot.owner: f"{slot} (hidden size {slot.hidden_size})" for slot in slots}
    shown = list(nodes.values())
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return " and ".join(shown[:4]) + more


def _begins(wiring: Wiring, slot: Slot) -> set[str]:
    """Returns the inputs that a slot's first value comes from."""
    return {name for name in wiring.inputs if slot in wiring.starts(name)}


def _is_kept(wiring: Wiring, slot: Slot, pairs: Mapping[str, str]) -> bool:
    return any(name in pairs and slot in wiring.ends(pairs[name]) for name in _begins(wiring, slot))


def _is_given_by_flag(wiring: Wiring, slot: Slot, hints: Hints) -> bool:
    """Whether flags give a slot's pair that is not checked here: it is forced, or a run will report its shapes."""
    named_inputs = _begins(wiring, slot) & set(hints.states)
    return any(
        hints.force_state or not may_be(wiring.inputs[name], wiring.outputs[hints.states[name]])
        for name in named_inputs
    )
