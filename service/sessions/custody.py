"""What is known of a session that may outlive its stream, or has been put aside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from service.engine.lane_state import LaneState
from service.errors import CarouselError
from service.sessions.terms import Terms

WhenDone = Callable[[CarouselError | None], None]
"""Called when it is done, with None; or with why it cannot be."""


@dataclass(slots=True, eq=False)
class Custody:
    """Kept beside a session. Most have none: a million of them would feel it.

    epoch: under which this server has its record. checkpoint_position: how far it is stored, None: not; told_position:
    what its client knows of that. is_dirty: whether it has moved since; is_writing: whether it is being stored.
    is_attached: whether a stream has it; held_until_s: if not, the monotonic time at which it is closed. is_asleep:
    whether its state is on its way to the store, or there alone: is_away; waiting: what is to be done when it is back.
    due: answers that wait until their position is stored. marks: by position, oldest first. opened_at: Unix seconds, of
    one that was not opened here.
    """

    terms: Terms
    epoch: int = 1
    checkpoint_position: int | None = None
    told_position: int | None = None
    is_dirty: bool = False
    is_writing: bool = False
    is_attached: bool = True
    held_until_s: float = 0.0
    is_asleep: bool = False
    is_away: bool = False
    waiting: list[WhenDone] = field(default_factory=list)
    due: list[tuple[int, WhenDone]] = field(default_factory=list)
    marks: dict[int, LaneState] = field(default_factory=dict)
    opened_at: float | None = None

    def news(self) -> int | None:
        """The position that is stored, when the client does not know it yet; told from here on."""
        if self.checkpoint_position == self.told_position:
            return None
        self.told_position = self.checkpoint_position
        return self.checkpoint_position

    def settle(self, position: int | None, error: CarouselError | None) -> None:
        """Calls those that waited for a position up to this, or all of them with an error."""
        due, self.due = self.due, []
        for wanted, call in due:
            if error is None and (position is None or wanted > position):
                self.due.append((wanted, call))
            else:
                call(error)
