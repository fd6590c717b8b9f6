"""The journal of one simulation, and the invariants of a replica and of the store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from service.sessions.stores.base import Ownership, Write
from service.sessions.stores.memory import Record
from simulation.adapters import Stored, stored_in
from simulation.store import SharedRecords
from simulation.system import Replica

Stamp = dict[str, Stored | None]
"""The store's records of sessions at one moment, by id."""
_TRACE = 4000
_PAUSED_S = 4.0
"""Virtual seconds by which a paused replica may write late."""
_GRACE_S = 5.0
"""Seconds by which a record may outlive its session's maximum age."""


class Journal:
    """The events and violations of a simulation. clock: virtual seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.violations: list[str] = []
        self.num_events = 0
        self.trace: deque[str] = deque(maxlen=_TRACE)
        self.look: Callable[[], None] = lambda: None
        """Checks the invariants that must hold at every moment. Called at each response."""
        self._clock = clock

    def now(self) -> float:
        """Returns the virtual time in seconds."""
        return self._clock()

    def note(self, text: str) -> None:
        """Notes an event."""
        self.num_events += 1
        self.trace.append(f"{self._clock() - 1000.0:9.4f} {text}")

    def violate(self, text: str) -> None:
        """Notes a violation of an invariant."""
        self.violations.append(text)
        self.note(f"VIOLATION: {text}")


class StoreChecks:
    """Checks every write: a record belongs to one session until it says that the session is gone, and does not last
    longer than the session may exist. max_age_s: 0: no limit; wall_clock: Unix seconds."""

    def __init__(self, journal: Journal, max_age_s: float, wall_clock: Callable[[], float]) -> None:
        self._journal = journal
        self._max_age_s = max_age_s
        self._wall_clock = wall_clock

    def changed(self, record: Record | None, write: Write) -> None:
        """Checks a write. record: as it was before."""
        if self._max_age_s and write.ownership is not Ownership.GONE:
            self._check_time(record, write)
        if record is None or record.ownership is Ownership.GONE or record.payload is None:
            return
        if write.payload is None or write.ownership is Ownership.GONE:
            return
        before, after = stored_in(record.payload), stored_in(write.payload)
        if before.opened_at != after.opened_at:
            self._journal.violate(
                f"the record of {write.session_id!r}, at position {before.position}, is overwritten by another session"
                f" of that id, at position {after.position}"
            )

    def _check_time(self, record: Record | None, write: Write) -> None:
        payload = write.payload or (None if record is None else record.payload)
        if payload is None:
            return
        gone_by_s = stored_in(payload).opened_at + self._max_age_s + _GRACE_S
        over_s = self._wall_clock() + write.ttl_s - gone_by_s
        if write.ttl_s and over_s > _PAUSED_S:
            self._journal.violate(f"the record of {write.session_id!r} lasts {over_s:g} s longer than its session may")


def stored(shared: SharedRecords, session_id: str) -> Stored | None:
    """Returns the stored content of a session; None if the store has nothing to resume it from."""
    record = shared.current(session_id)
    if record is None or record.ownership is Ownership.GONE or record.payload is None:
        return None
    return stored_in(record.payload)


def stamps(shared: SharedRecords, replica: Replica, names: Iterable[str]) -> Stamp:
    """Returns the store's current records of those sessions that `replica` has in memory."""
    return {name: stored(shared, name) for name in names if replica.has(name)}


def check_bounds(journal: Journal, replica: Replica) -> None:
    """Checks what must hold at every moment: limits are kept, and no count is negative."""
    seen, knobs = replica.counts(), replica.knobs
    name = replica.life.name
    if seen.num_sessions > knobs.max_sessions:
        journal.violate(f"{name} has {seen.num_sessions} live sessions, and its limit is {knobs.max_sessions}")
    for gauge, value in seen.gauges.items():
        if value < 0:
            journal.violate(f"{name}: the gauge {gauge} is {value}")
    if seen.fewest_unanswered < 0:
        journal.violate(f"{name}: the number of unanswered requests of a stream is {seen.fewest_unanswered}")
    if seen.num_tombstones > knobs.num_tombstones:
        journal.violate(
            f"{name} remembers {seen.num_tombstones} closed sessions, and its limit is {knobs.num_tombstones}"
        )


def check_empty(journal: Journal, replica: Replica) -> None:
    """Checks that nothing is left after every client has disconnected and all times have passed."""
    seen, name = replica.statistics(), replica.life.name
    for session_id, (position, is_attached, is_spilled) in seen.sessions.items():
        journal.violate(
            f"{name}: session {session_id!r} is left at position {position}"
            f" ({'attached' if is_attached else 'detached'}{', spilled' if is_spilled else ''})"
        )
    for what, count in (
        ("slots are used", seen.slots_used),
        ("forks are used", seen.forks_used),
        ("jobs wait in engines", seen.jobs_waiting),
        ("streams are left", len(seen.unanswered)),
        ("calls wait for sessions", seen.waiters),
        ("engines run that serve nothing", seen.engines_leaked),
    ):
        if count and not seen.sessions:
            journal.violate(f"{name}: {count} {what} although no session is left")
    if seen.tasks and not seen.sessions:
        journal.violate(f"{name}: tasks are left: {', '.join(seen.tasks)}")
    for gauge, value in seen.gauges.items():
        if value and not seen.sessions:
            journal.violate(f"{name}: the gauge {gauge} is {value} although no session is left")
