"""The last tokens of a lane, out of the state in which its model keeps them."""

from __future__ import annotations

from collections.abc import Callable

from service.engine.before import Before
from service.engine.jobs import Lane
from service.engine.results import LaneState
from service.repository.steps import HISTORY


class History:
    """Of the lanes of an engine. place: of the state that has it, among the manifest's; None: the model has none. read:
    copies a lane. For the side that drives the engine."""

    def __init__(self, place: int | None, read: Callable[[Lane], LaneState | None]) -> None:
        self._place = place
        self._read = read

    def before(self, lane: Lane) -> Before | None:
        """The tokens before the position of a lane that has no job in hand; None of a model that keeps none."""
        if self._place is None or (state := self._read(lane)) is None:
            return None
        tokens = [*state.states[self._place].tolist(), *state.pending]
        return Before(lane.position, tokens[len(tokens) - min(HISTORY, lane.position) :])
