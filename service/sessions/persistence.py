"""How much of a session is stored: the policy agreed at opening, and the session's record with the answers that wait
for it.

Most sessions are never stored. They share the read-only object `PLAIN_PERSISTENCE`, because one object for each of a
million sessions takes too much memory. `Session.own_persistence` gives a session its own object.

Words for points in time and for owners:

- serial: when this server created the session object, in microseconds; orders the sessions of a server.
- era: how often the state was replaced by a rewind or a set_state. Within an era, positions grow.
- moment: (era, position), a point in a session's life.
- epoch: the fencing number under which a server owns a record; each claim increases it.
- term: the period in which a server's lease holds without a gap (`leases`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple
from weakref import ref

from service.engine.results import LaneState
from service.errors import CarouselError, guarded


class Durability(IntEnum):
    """How much of a session the store keeps. A greater value keeps more.

    NONE: nothing, except to spill the session or to keep it after its stream. CHECKPOINT: its state, at intervals.
    STRICT: each answer is stored before it is delivered.
    """

    NONE = 1
    CHECKPOINT = 2
    STRICT = 3


class OnDisconnect(IntEnum):
    """What happens to a session when its stream ends. FREE: it is closed. HOLD: it stays in memory. KEEP: it is
    stored."""

    FREE = 1
    HOLD = 2
    KEEP = 3


class SessionPolicy(NamedTuple):
    """What the server agreed to. duration_s: how long HOLD and KEEP last. is_unattended: whether a generation continues
    without a stream."""

    durability: Durability = Durability.NONE
    on_disconnect: OnDisconnect = OnDisconnect.FREE
    duration_s: float = 0.0
    is_unattended: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the session ends with its stream and leaves nothing in the store."""
        return self.durability is Durability.NONE and self.on_disconnect is OnDisconnect.FREE

    @property
    def is_stored(self) -> bool:
        """Whether the store has, or will have, a record under the session's id, for any server to resume."""
        return self.durability is not Durability.NONE or self.on_disconnect is OnDisconnect.KEEP


PLAIN = SessionPolicy()


WhenDone = Callable[[CarouselError | None], None]
"""Called once: with None on success, or with the reason for the failure."""
Moment = tuple[int, int]
"""(era, position): a point in a session's life. Positions grow within an era; rewind and set_state begin a new era."""


class UnstoredAnswer:
    """A completed request whose answer the store did not take. answered: the request with its answer. key: the key of
    the short list in `among` that holds this object."""

    __slots__ = ("__weakref__", "among", "answered", "key")

    def __init__(self, among: AnswersByKey, key: object, answered: object) -> None:
        self.among = ref(among)
        self.key = key
        self.answered = answered

    def drop(self) -> None:
        """Removes this object from `among`."""
        among = self.among()
        if among is not None and self.key in among:
            among[self.key] = [one for one in among[self.key] if one is not self]
            if not among[self.key]:
                del among[self.key]


class AnswersByKey(dict[object, list[UnstoredAnswer]]):
    """The unstored answers of one session, or of the step batches of one stream, by a key that identifies a retry."""

    __slots__ = ("__weakref__",)


@dataclass(slots=True, eq=False)
class Persistence:
    """A session's record, its stream, and the answers that wait for the store. Event loop only."""

    policy: SessionPolicy
    epoch: int = 1
    """The fencing epoch under which this server owns the record."""
    record_id: str | None = None
    """The record's name in the store; None: the session's id."""
    has_record: bool = False
    """Whether the store has, or may have, a record of this session."""
    renew_at_s: float = 0.0
    """When half of the record's lifetime is over, in monotonic seconds."""
    is_unconfirmed: bool = False
    """Whether another server may own the session: see `leases`."""
    known_s: float = 0.0
    """For an unconfirmed session: when this server was last known to own it, in monotonic seconds."""
    era: int = 0
    """How often the state was replaced by a rewind or a set_state."""
    stored: Moment | None = None
    """The moment that the record holds."""
    reported_position: int | None = None
    """The stored position that the client was last informed of."""
    is_dirty: bool = False
    """Whether the session changed after it was last read for the store."""
    is_writing: bool = False
    after_claim: list[Callable[[], None]] | None = None
    """Callbacks that run when the store has answered a claim of the record; None when no claim is in progress."""
    is_fetched: bool = False
    """Whether the session came from the store and no stream has resumed it yet."""
    is_unverified: bool = False
    """Whether the store could not be asked if another session has the id."""
    is_attached: bool = True
    held_until_s: float = 0.0
    """When a detached session expires, in monotonic seconds."""
    awaiting: list[tuple[Moment, WhenDone, bool]] = field(default_factory=list)
    """Answers that wait until their moment is stored, in order of delivery. The flag says whether the answer is
    partial, that is, whether further answers to the same request follow."""
    num_parts: int = 0
    """The number of partial answers in `awaiting`."""
    unstored: AnswersByKey = field(default_factory=AnswersByKey)
    """Completed requests whose answers the store did not take: see `unstored`."""
    moved: CarouselError | None = None
    """For a session that was handed over: the error for requests whose effect is not in its record."""
    is_releasing: bool = False
    """Whether the last record of a session that was handed over is being written. Its answers depend on what that
    record holds."""
    marks: dict[int, LaneState] = field(default_factory=dict)
    """Marks by position, the oldest first."""
    opened_at: float | None = None
    """When the session was opened, in Unix seconds; None: it was opened on this server."""

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """While the body asks the store to give this server the record, delays everything that ends the session. Runs
        the delayed callbacks afterwards."""
        self.after_claim = []
        try:
            yield
        finally:
            calls, self.after_claim = self.after_claim, None
            for call in calls:
                guarded(call)

    @property
    def checkpoint_position(self) -> int | None:
        """The position from which any server can resume the session; None when there is no record under the session's
        id."""
        return None if self.stored is None or self.record_id is not None else self.stored[1]

    @property
    def is_in_store(self) -> bool:
        """Whether the store has a state of the session: it continues to exist there when its opening fails here."""
        return self.stored is not None

    @property
    def waits_for_store(self) -> bool:
        """Whether answers wait until the store has what they report."""
        return self.policy.durability is Durability.STRICT or self.is_unconfirmed

    @property
    def is_set_back(self) -> bool:
        """Whether the session was rewound, or got another state, after the moment that the record holds. The stored
        position then says nothing about the current state."""
        return self.era != (0 if self.stored is None else self.stored[0])

    def holds(self, moment: Moment) -> bool:
        """Whether the record includes the session's state at a moment."""
        return self.stored is not None and moment <= self.stored

    def unreported_checkpoint(self) -> int | None:
        """Returns the stored position when the client does not know it yet, else None. The caller must report it to the
        client."""
        position = self.checkpoint_position
        if position == self.reported_position:
            return None
        self.reported_position = position
        return position

    @property
    def num_awaiting(self) -> int:
        """The number of requests whose last answer waits for the store."""
        return len(self.awaiting) - self.num_parts

    def wait(self, moment: Moment, call: WhenDone, is_part: bool = False) -> None:
        """Adds an answer to `awaiting`."""
        self.awaiting.append((moment, call, is_part))
        if is_part:
            self.num_parts += 1

    def resolve(self, stored: Moment | None, error: CarouselError | None) -> None:
        """Calls the callbacks that wait for a moment up to `stored`, or all of them with the error."""
        if not self.awaiting:
            return
        awaiting, self.awaiting, self.num_parts = self.awaiting, [], 0
        for wanted, call, is_part in awaiting:
            if error is None and (stored is None or wanted > stored):
                self.wait(wanted, call, is_part)
            else:
                guarded(call, error)


class _PlainPersistence(Persistence):
    """The persistence that all plain sessions share. Read-only."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, "opened_at"):  # the last field: all fields are set
            raise AttributeError(f"{name}: all plain sessions share this: call Session.own_persistence first")
        object.__setattr__(self, name, value)


PLAIN_PERSISTENCE: Persistence = _PlainPersistence(PLAIN)
