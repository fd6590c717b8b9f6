"""Lanes out of an engine and into it: read between batches, and written to a lane that has nothing to do.

Knows no session and no format. The side that drives the engine calls it.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.engine.active import Rest
from service.engine.arena import Arena
from service.engine.jobs import NO_TOKENS, Lane
from service.engine.lane_state import LaneState


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
