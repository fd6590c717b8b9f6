"""How much of a session is kept: the policy that is agreed when it is opened, the server's limits, and the record that
the store has, or will have, with the answers that wait for it.

Most sessions are never stored. They share `NOT_STORED`, which cannot be changed: `Session.own_persistence` gives a
session its own. A million sessions would feel an object each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple
from weakref import ref

from service.engine.results import LaneState
from service.errors import CarouselError, InvalidFieldError, guarded


class Durability(IntEnum):
    """How much of a session the store keeps; a greater value keeps more.

    NONE: nothing, except to free its slot or to keep it after its stream. CHECKPOINT: its state, at intervals. STRICT:
    every answer is stored before it is delivered.
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
    """duration_s: how long HOLD and KEEP last; is_unattended: whether a generation continues without a stream."""

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
        """Whether the store has, or will have, a record under the session's id, so that any server can resume it."""
        return self.durability is not Durability.NONE or self.on_disconnect is OnDisconnect.KEEP


PLAIN = SessionPolicy()


@dataclass(frozen=True, slots=True)
class PolicyLimits:
    """What a server grants. max_durability: the most that is stored; hold_s, keep_s: the durations when a client gives
    none; max_hold_s, max_keep_s: the longest."""

    max_durability: Durability = Durability.STRICT
    hold_s: float = 60.0
    max_hold_s: float = 3600.0
    keep_s: float = 86_400.0
    max_keep_s: float = 2_592_000.0

    def agree(
        self,
        durability: Durability | None,
        on_disconnect: OnDisconnect,
        duration_s: float | None,
        *,
        is_unattended: bool,
    ) -> SessionPolicy:
        """The policy of a session that asks for this; None: the client did not say. Raises InvalidFieldError for more
        than this server grants."""
        if durability is None:
            durability = Durability.NONE if on_disconnect is OnDisconnect.FREE else Durability.CHECKPOINT
            durability = min(durability, self.max_durability)
        if durability > self.max_durability:
            raise InvalidFieldError(
                f"open.durability = DURABILITY_{durability.name} is more than this server gives:"
                f" DURABILITY_{self.max_durability.name} (max_durability)",
                field="open.durability",
            )
        field = "open.on_disconnect.duration"
        if on_disconnect is OnDisconnect.FREE:
            if duration_s is not None:
                raise InvalidFieldError(
                    f"{field} goes with DISCONNECT_ACTION_HOLD and DISCONNECT_ACTION_KEEP alone", field=field
                )
            return SessionPolicy(durability, on_disconnect, 0.0, is_unattended)
        is_hold = on_disconnect is OnDisconnect.HOLD
        longest = self.max_hold_s if is_hold else self.max_keep_s
        if duration_s is None:
            duration_s = min(longest, self.hold_s if is_hold else self.keep_s)
        if not 0.0 < duration_s <= longest:
            setting = "max_hold_s" if is_hold else "max_keep_s"
            raise InvalidFieldError(
                f"{field} = {duration_s:g} s must be above 0 and at most {longest:g} s ({setting})", field=field
            )
        return SessionPolicy(durability, on_disconnect, duration_s, is_unattended)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """max_sessions: live at once, of all models; idle_timeout_s: without a request, until a session is closed;
    max_age_s: from when a session was opened until it is closed, however it is used; 0: no limit; max_feed_tokens: in
    one feed; max_generate_tokens: in one generation; max_in_flight: requests of one session not yet answered;
    max_forks: beams of one search, targets of one score; generation_window: tokens generated ahead of what has been
    written to the client; max_answer_bytes: of one answer; num_tombstones: closed sessions remembered; replay_tokens:
    of one generation, kept for retries; max_marks: of one session; hold_s: for which a copy of a session that would end
    with its stream waits to be resumed; max_deferred_bytes: of all requests that wait for sessions to be opened or
    restored; max_replay_bytes: of all that is kept for retries, and as much again of what the store did not take;
    max_unwritten_bytes: of large requests in flight, and of answers not yet written, and as much again of what waits
    for watchers."""

    max_sessions: int = 10_000
    idle_timeout_s: float = 300.0
    max_age_s: float = 0.0
    max_feed_tokens: int = 131_072
    max_generate_tokens: int = 65_536
    max_in_flight: int = 64
    max_forks: int = 64
    generation_window: int = 256
    max_answer_bytes: int = 4 * 1024 * 1024
    num_tombstones: int = 10_000
    replay_tokens: int = 16_384
    max_marks: int = 8
    hold_s: float = 60.0
    max_deferred_bytes: int = 128 * 1024 * 1024
    max_replay_bytes: int = 32 * 1024 * 1024
    max_unwritten_bytes: int = 256 * 1024 * 1024

    @property
    def mark_s(self) -> float:
        """By how much the last use of a session may be later than it is marked: a mark costs as much as a step."""
        return self.idle_timeout_s / 64


WhenDone = Callable[[CarouselError | None], None]
"""Called once: with None when it is done, or with the reason why it cannot be."""
Moment = tuple[int, int]
"""(era, position): a point in a session's life. Positions grow within an era; a rewind begins a new era."""


class Kept:
    """A request that was done, and whose answer the store did not take. answered: the request with its answer; key:
    under which `among` has it, as one of few."""

    __slots__ = ("__weakref__", "among", "answered", "key")

    def __init__(self, among: Unstored, key: object, answered: object) -> None:
        self.among = ref(among)
        self.key = key
        self.answered = answered

    def drop(self) -> None:
        """Keeps it no longer."""
        among = self.among()
        if among is not None and self.key in among:
            among[self.key] = [one for one in among[self.key] if one is not self]
            if not among[self.key]:
                del among[self.key]


class Unstored(dict[object, list[Kept]]):
    """Those of one session, or the step batches of one stream, by what tells them apart."""

    __slots__ = ("__weakref__",)


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
    renew_at_s: float = 0.0
    """Monotonic seconds at which half of the record's time is over."""
    is_unconfirmed: bool = False
    """Whether another server may have the session: see `leases`."""
    known_s: float = 0.0
    """Of one that is unconfirmed: when it was known last that no other has it, in monotonic seconds."""
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
    awaiting: list[tuple[Moment, WhenDone, bool]] = field(default_factory=list)
    """Answers that wait until their moment is stored, in the order in which they are to be delivered; and whether each
    is a part, after which its request is answered again."""
    num_parts: int = 0
    """How many of them are."""
    unstored: Unstored = field(default_factory=Unstored)
    """What was done and could not be stored: see `unstored`."""
    moved: CarouselError | None = None
    """For a session that was handed over: the answer of requests whose effect its record does not have."""
    is_releasing: bool = False
    """Whether the record of a session that was handed over is being written: what it holds decides the answers."""
    marks: dict[int, LaneState] = field(default_factory=dict)
    """By position, the oldest first."""
    opened_at: float | None = None
    """Unix seconds, of a session that was opened elsewhere."""

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """While the store is asked to give this server the record: what ends the session meanwhile waits."""
        self.after_claim = []
        try:
            yield
        finally:
            calls, self.after_claim = self.after_claim, None
            for call in calls:
                guarded(call)

    @property
    def checkpoint_position(self) -> int | None:
        """The position from which any server can resume the session; None when it has no record under its own id."""
        return None if self.stored is None or self.record_id is not None else self.stored[1]

    @property
    def is_resumed(self) -> bool:
        """Whether the session came out of the store, or is in it: it exists, whatever becomes of its opening here."""
        return self.stored is not None

    @property
    def waits_for_store(self) -> bool:
        """Whether answers wait until what they report is stored."""
        return self.policy.durability is Durability.STRICT or self.is_unconfirmed

    @property
    def is_set_back(self) -> bool:
        """Whether the session was set back, or given another state, since the moment that the record holds: a position
        there says nothing of what the session is."""
        return self.era != (0 if self.stored is None else self.stored[0])

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

    @property
    def num_awaiting(self) -> int:
        """Requests whose last answer waits."""
        return len(self.awaiting) - self.num_parts

    def wait(self, moment: Moment, call: WhenDone, is_part: bool = False) -> None:
        """Has an answer wait: see `awaiting`."""
        self.awaiting.append((moment, call, is_part))
        if is_part:
            self.num_parts += 1

    def resolve(self, stored: Moment | None, error: CarouselError | None) -> None:
        """Calls those that wait for a moment up to `stored`, or all of them with an error."""
        if not self.awaiting:
            return
        awaiting, self.awaiting, self.num_parts = self.awaiting, [], 0
        for wanted, call, is_part in awaiting:
            if error is None and (stored is None or wanted > stored):
                self.wait(wanted, call, is_part)
            else:
                guarded(call, error)


class _NotStored(Persistence):
    """What all plain sessions share."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, "opened_at"):  # the last field: all are set
            raise AttributeError(f"{name}: all plain sessions share this: call Session.own_persistence first")
        object.__setattr__(self, name, value)


NOT_STORED: Persistence = _NotStored(PLAIN)
