"""Reads the last tokens of a lane from the state in which its model keeps them."""

from __future__ import annotations

from collections.abc import Callable

from service.engine.jobs import Lane
from service.engine.last_tokens import LastTokens
from service.engine.results import LaneState
from service.repository.steps import HISTORY


class History:
    """Reads histories of an engine's lanes. Only for the thread that drives the engine.

    place: index of the state that holds the history, in the manifest's order; None: the model keeps none. read: copies
    a lane's state.
    """

    def __init__(self, place: int | None, read: Callable[[Lane], LaneState | None]) -> None:
        self._place = place
        self._read = read

    def before(self, lane: Lane) -> LastTokens | None:
        """Returns the tokens before the position of a lane without an active job; None if the model keeps none."""
        if self._place is None or (state := self._read(lane)) is None:
            return None
        tokens = [*state.states[self._place].tolist(), *state.pending]
        return LastTokens(lane.position, tokens[len(tokens) - min(HISTORY, lane.position) :])
