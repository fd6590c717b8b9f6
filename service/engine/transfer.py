"""Lanes out of an engine and into it: read between batches, and written to a lane that has nothing to do.

Knows no session and no format. Whoever drives the engine calls it.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.engine.arena import Arena
from service.engine.jobs import NO_TOKENS, EncodeJob, FeedJob, GenerateJob, Lane
from service.engine.lane_state import LaneState


def read_lanes(arena: Arena, lanes: Sequence[Lane]) -> list[LaneState | None]:
    """Copies lanes out. None for one that is closed, or in the midst of a feed or of its source: later."""
    readable = [lane for lane in lanes if _is_readable(lane)]
    copies = iter(arena.read([lane.slot.row for lane in readable]))
    found: list[LaneState | None] = []
    for lane in lanes:
        if not _is_readable(lane):
            found.append(None)
            continue
        states, contexts = next(copies)
        job = lane.job
        pending = lane.pending
        if isinstance(job, FeedJob | GenerateJob):
            pending = lane.inputs[lane.done : lane.num_pending]
        next_logits = None if pending else lane.next_logits
        found.append(
            LaneState(
                lane.position,
                pending,
                next_logits,
                states,
                contexts,
                job.num_produced if isinstance(job, GenerateJob) else 0,
                job.choice.seen if isinstance(job, GenerateJob) and job.choice is not None else None,
            )
        )
    return found


def write_lane(arena: Arena, lane: Lane, state: LaneState) -> None:
    """Puts a lane without a job where another was, a generation that was in hand left out. Raises ValueError when the
    arrays are not of the arena's shapes."""
    arena.write(lane.slot.row, state.states, state.contexts)
    lane.position = state.position
    lane.pending = state.pending or NO_TOKENS
    lane.next_logits = state.next_logits


def _is_readable(lane: Lane) -> bool:
    if lane.closed or isinstance(lane.job, EncodeJob):
        return False
    if isinstance(lane.job, FeedJob):  # not yet begun, or just done
        return lane.done <= lane.num_pending or lane.done == len(lane.inputs)
    return True
