"""All that a lane is, as values of its own: read out of an engine between batches, and written into an idle lane.

Knows no session and no format. The side that drives the engine reads and writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.engine.arena import Arena, Array
from service.engine.decoding import FloatRow, IntArray
from service.engine.items import Item
from service.engine.jobs import NO_TOKENS, Lane, Rest


class LaneState(NamedTuple):
    """Where a lane is, at a boundary between tokens.

    pending, next_logits: see `Lane`. states: one array a state tensor, of the manifest's shape without its batch axis;
    contexts: one [S, ...] array a context tensor, S the source's length. None of the arrays is to be written to.
    num_produced, seen: of the generation in hand, if one is: tokens so far, and [any number] which of them the
    repetition penalty has noted.
    """

    position: int
    pending: list[Item]
    next_logits: FloatRow | None
    states: list[Array]
    contexts: list[Array]
    num_produced: int = 0
    seen: IntArray | None = None

    @property
    def num_bytes(self) -> int:
        """Of its arrays."""
        return sum(array.nbytes for array in (*self.states, *self.contexts))


def read_lanes(arena: Arena, lanes: Sequence[Lane]) -> list[LaneState | None]:
    """Copies lanes out. None for one that is closed, or whose feed or source is run in part: to be read later."""
    rests = [_rest(lane) for lane in lanes]
    rows = [lane.slot.row for lane, rest in zip(lanes, rests, strict=True) if rest is not None]
    copies = iter(arena.read(rows))
    found: list[LaneState | None] = []
    for lane, rest in zip(lanes, rests, strict=True):
        if rest is None:
            found.append(None)
            continue
        states, contexts = next(copies)
        next_logits = None if rest.pending else lane.next_logits
        found.append(
            LaneState(lane.position, rest.pending, next_logits, states, contexts, rest.num_produced, rest.seen)
        )
    return found


def write_lane(arena: Arena, lane: Lane, state: LaneState) -> None:
    """Copies a saved state into an idle lane. A generation that was in hand is not restored. Raises ValueError when the
    arrays are not of the arena's shapes."""
    arena.write(lane.slot.row, state.states, state.contexts)
    lane.position = state.position
    lane.pending = state.pending or NO_TOKENS
    lane.next_logits = state.next_logits


def _rest(lane: Lane) -> Rest | None:
    if lane.is_closed:
        return None
    return Rest(lane.pending) if lane.active is None else lane.active.rest(lane)
