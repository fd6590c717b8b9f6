"""The record that the store has, or will have, of a session, and the answers that wait for it.

Most sessions are never stored. They share `NOT_STORED`, which cannot be changed: `Session.own_persistence` gives a
session its own. A million sessions would feel an object each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from service.engine.lane_state import LaneState
from service.errors import CarouselError
from service.sessions.policy import PLAIN, SessionPolicy
from service.sessions.tasks import call_guarded

WhenDone = Callable[[CarouselError | None], None]
"""Called once: with None when it is done, or with the reason why it cannot be."""
Moment = tuple[int, int]
"""(era, position): a point in a session's life. Positions grow within an era; a rewind begins a new era."""


@dataclass(slots=True, eq=False)
class Persistence:
    """Event loop only."""

    policy: SessionPolicy
    epoch: int = 1
    """The store's fencing epoch under which this server owns the record."""
    record_id: str | None = None
    """The record's name in the store; None: the session's id."""
    has_record: bool = False
    """Whether the store has a record of this session, or may have one."""
    expires_at: float = 0.0
    """Unix seconds at which the store may drop the record."""
    era: int = 0
    """How often the session went to a state that no feed led to: by rewind or by set_state."""
    stored: Moment | None = None
    """The moment that the record holds."""
    reported_position: int | None = None
    """The stored position that the client knows of."""
    is_dirty: bool = False
    """Whether the session changed since it was last read out for the store."""
    is_writing: bool = False
    after_claim: list[Callable[[], None]] | None = None
    """While the store is asked to give this server the record: what is to be done when it answered."""
    is_fetched: bool = False
    """Whether the session came out of the store, and no stream has resumed it since."""
    is_unverified: bool = False
    """Whether the store could not be asked if another session has the id."""
    is_attached: bool = True
    held_until_s: float = 0.0
    """Monotonic seconds at which a detached session expires."""
    awaiting: list[tuple[Moment, WhenDone]] = field(default_factory=list)
    """Answers that wait until their moment is stored, in the order in which they are to be delivered."""
    moved: CarouselError | None = None
    """For a session that was handed over: the answer of requests whose effect its record does not have."""
    is_releasing: bool = False
    """Whether the record of a session that was handed over is being written: what it holds decides the answers."""
    marks: dict[int, LaneState] = field(default_factory=dict)
    """By position, the oldest first."""
    opened_at: float | None = None
    """Unix seconds, of a session that was opened elsewhere."""

    @property
    def checkpoint_position(self) -> int | None:
        """The position from which any server can resume the session; None when it has no record under its own id."""
        return None if self.stored is None or self.record_id is not None else self.stored[1]

    @property
    def is_resumed(self) -> bool:
        """Whether the session came out of the store, or is in it: it exists, whatever becomes of its opening here."""
        return self.stored is not None

    def holds(self, moment: Moment) -> bool:
        """Whether the record has what the session was at a moment."""
        return self.stored is not None and moment <= self.stored

    def unreported_checkpoint(self) -> int | None:
        """The stored position when the client does not know it yet. The caller reports it."""
        position = self.checkpoint_position
        if position == self.reported_position:
            return None
        self.reported_position = position
        return position

    def resolve(self, stored: Moment | None, error: CarouselError | None) -> None:
        """Calls those that wait for a moment up to `stored`, or all of them with an error."""
        if not self.awaiting:
            return
        awaiting, self.awaiting = self.awaiting, []
        for wanted, call in awaiting:
            if error is None and (stored is None or wanted > stored):
                self.awaiting.append((wanted, call))
            else:
                call_guarded(call, error)


class _NotStored(Persistence):
    """What all plain sessions share."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, "opened_at"):  # the last field: all are set
            raise AttributeError(f"{name}: all plain sessions share this: call Session.own_persistence first")
        object.__setattr__(self, name, value)


NOT_STORED: Persistence = _NotStored(PLAIN)
