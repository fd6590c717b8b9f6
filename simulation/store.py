"""A store that replicas share. It fails, delays, loses and reorders as the seed determines.

The service's `MemoryStore` keeps the records by its own rules. This file simulates the rest: a replica counts as alive
for `lease_s` after its last heartbeat, and nothing reaches the store from a replica whose life is over. Rules:

1. During an outage every call raises. At other times a call fails with `error_rate`.
2. A write that raises has changed none, some, or all of its records. A claim or a reservation that raises may have been
   carried out.
3. Acknowledged records are kept until they expire, unless `SharedRecords.lose` removes them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from service.sessions.stores import memory
from service.sessions.stores.base import Beat, Claim, Claimed, StoreError, Write, Written
from service.sessions.stores.memory import MemoryStore, Record
from simulation.loop import Life

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class SharedRecords(memory.SharedRecords):
    """The data that the replicas share. clock: Unix seconds; on_change: called after each write, with the record as it
    was before."""

    clock: Callable[[], float]
    lease_s: float
    on_change: Callable[[Record | None, Write], None] = lambda record, write: None
    leases: dict[str, float] = field(default_factory=dict)
    """The time until which each replica counts as alive."""
    terms: Counter[str] = field(default_factory=Counter)
    """The number of leases that each replica has had. A new lease begins after one has run out."""
    presence: dict[str, tuple[float, float]] = field(default_factory=dict)
    """For each replica, since when it has been alive without a gap, and the time of its last heartbeat."""
    lapsed: set[str] = field(default_factory=set)
    """Replicas that still run although their lease has run out once."""

    def current(self, session_id: str) -> Record | None:
        """Returns the record of a session; None if there is none or it has expired."""
        return self.find(session_id, self.clock())

    def is_there(self, owner: str) -> bool:
        """Whether a replica's lease is valid."""
        return self.leases.get(owner, 0.0) > self.clock()

    def lose(self, rng: random.Random, *, is_all: bool) -> list[str]:
        """Removes all records, or some. Returns the removed ids."""
        lost = list(self.records) if is_all else [name for name in self.records if rng.random() < 0.5]
        for name in lost:
            del self.records[name]
        if is_all:
            self.leases.clear()
            self.presence.clear()
            for wanted in self.owners.values():
                wanted.clear()
        return lost

    def rivals_s(self, owner: str) -> float:
        """Returns the longest time, in seconds, that another replica was alive while `owner` did not count as alive.
        Called with a heartbeat of `owner`."""
        now, since = self.clock(), self.clock()
        gone = now
        if owner in self.presence:
            begun, last = self.presence[owner]
            gone = min(now, last + self.lease_s)
            since = begun if now <= last + self.lease_s else now
        others = [one for name, one in self.presence.items() if name != owner]
        self.presence[owner] = since, now
        times = [min(now, last + self.lease_s) - max(begun, gone) for begun, last in others]
        return max([0.0, *times])

    def beat(self, owner: str) -> None:
        """Extends a replica's lease."""
        until_s = self.leases.get(owner)
        if until_s is None or until_s < self.clock():
            self.terms[owner] += 1
            if until_s is not None:
                self.lapsed.add(owner)
        self.leases[owner] = self.clock() + self.lease_s


@dataclass(slots=True)
class Faults:
    """The faults of a store. error_rate: fraction of failing calls outside outages; clock: Unix seconds."""

    rng: random.Random
    clock: Callable[[], float]
    error_rate: float = 0.0
    outages: list[tuple[float, float]] = field(default_factory=list)
    is_down: bool = False
    """Set by a scenario: the store is down until the scenario clears it."""
    cuts: dict[str, float] = field(default_factory=dict)
    """For each replica, by name, the time until which its calls do not reach the store."""
    troubles: list[tuple[float, float]] = field(default_factory=list)
    """The periods in which the store did not answer, failed sometimes, or answered late."""

    def trouble_s(self, since: float) -> float:
        """Returns for how many seconds since a time the store did not work properly."""
        now = self.clock()
        return sum(max(0.0, min(end, now) - max(begin, since)) for begin, end in self.troubles)

    def is_cut(self, replica: str) -> bool:
        """Whether the replica's calls do not reach the store."""
        return self.is_down or self.cuts.get(replica, 0.0) > self.clock()

    def strike(self, replica: str) -> bool:
        """Whether a call of a replica fails."""
        now = self.clock()
        if self.is_cut(replica) or any(begin <= now < end for begin, end in self.outages):
            return True
        return self.error_rate > 0.0 and self.rng.random() < self.error_rate


class SimulatedStore:
    """One replica's access to the shared records: a `StateStore`. life: the replica's."""

    def __init__(self, shared: SharedRecords, owner: str, faults: Faults, life: Life) -> None:
        self._store = MemoryStore(shared, clock=shared.clock, owner=owner)
        self._shared = shared
        self._faults = faults
        self._life = life
        self._replica = life.name.partition(".")[0]
        shared.beat(owner)

    def reserve(self, session_id: str, ttl_s: float) -> int | None:
        """See `StateStore`."""
        return self._take(partial(self._store.reserve, session_id, ttl_s))

    def has(self, session_id: str) -> bool:
        """See `StateStore`."""
        self._check()
        return self._store.has(session_id)

    def ids(self, prefix: str) -> list[str]:
        """See `StateStore`."""
        self._check()
        return self._store.ids(prefix)

    def claim(self, session_ids: Sequence[str]) -> list[Claim]:
        """See `StateStore`."""
        return self._take(partial(self._store.claim, session_ids))

    def ask(self, owner: str, session_ids: Sequence[str]) -> set[str]:
        """See `StateStore`."""
        self._check()
        return self._store.ask(owner, session_ids)

    def write(self, writes: Sequence[Write]) -> Written:
        """See `StateStore`."""
        if self._strikes():
            num_done = self._faults.rng.choice([0, 0, len(writes), self._faults.rng.randrange(len(writes) + 1)])
            for write in writes[: 0 if self._is_cut else num_done]:
                self._write(write)
            raise StoreError("the simulated store fails")
        return self._outcome(writes)

    @property
    def owner(self) -> str:
        """See `StateStore`."""
        return self._store.owner

    @property
    def lease_s(self) -> float | None:
        """See `StateStore`."""
        return self._shared.lease_s

    def heartbeat(self) -> Beat:
        """See `StateStore`."""
        self._check()
        self._shared.beat(self._store.owner)
        owner = self._store.owner
        return self._store.heartbeat()._replace(
            term=str(self._shared.terms[owner]), rivals_s=self._shared.rivals_s(owner)
        )

    def undo_claim(self, session_id: str) -> None:
        """See `StateStore`."""
        self._check()
        self._store.undo_claim(session_id)

    def set_aside(self, session_id: str) -> None:
        """See `StateStore`."""
        self._check()
        self._store.set_aside(session_id)

    def risk(self) -> str:
        """See `StateStore`."""
        return ""

    def sweep(self, limit: int) -> int:
        """See `StateStore`."""
        self._check()
        return self._store.sweep(limit)

    def close(self) -> None:
        """See `StateStore`."""
        self._store.close()
        self._shared.leases.pop(self._store.owner, None)

    def _take(self, take: Callable[[], T]) -> T:
        """Claims or reserves. A call that fails may have been carried out, with an answer that came too late."""
        is_struck = self._strikes()
        if not is_struck or (not self._is_cut and self._faults.rng.random() < 0.5):
            taken = take()
            if isinstance(taken, int) or (isinstance(taken, list) and any(isinstance(one, Claimed) for one in taken)):
                self._be_there()
            if not is_struck:
                return taken
        raise StoreError("the simulated store fails")

    def _be_there(self) -> None:
        """Starts a new lease if none is valid, because a replica that gets or makes a record counts as alive."""
        if not self._shared.is_there(self._store.owner):
            self._shared.beat(self._store.owner)

    def _check(self) -> None:
        if self._strikes():
            raise StoreError("the simulated store fails")

    @property
    def _is_cut(self) -> bool:
        return self._faults.is_cut(self._replica)

    def _strikes(self) -> bool:
        """Whether a call fails. Raises StoreError for a dead replica, whose calls never reach the store."""
        if self._life.is_over:
            raise StoreError("the process is dead")
        return self._faults.strike(self._replica)

    def _outcome(self, writes: Sequence[Write]) -> Written:
        outcomes = [self._write(write) for write in writes]
        refused, missing = (set[str]().union(*found) for found in zip(*outcomes, strict=True))
        return Written(refused, missing)

    def _write(self, write: Write) -> Written:
        record = self._shared.current(write.session_id)
        before = None if record is None else replace(record)
        written = self._store.write([write])
        if not (written.refused or written.missing):
            self._shared.on_change(before, write)
            if before is None:
                self._be_there()
        return written
