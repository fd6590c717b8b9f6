"""A store that replicas share, and that fails, delays, forgets and reorders as the seed says.

The service's `MemoryStore` keeps the records, by its own rules. What is simulated is here: a replica counts as there
for `lease_s` after its last heartbeat, and nothing of it reaches the store once its life is over. Rules:

1. During an outage every call raises. At other times a call fails now and then.
2. A write that raises has changed none, some, or all of its records; a claim or a reservation that raises may have
   been carried out.
3. Nothing that was acknowledged is forgotten before its time is over, but by `Shelf.lose`.
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
class Shelf(memory.Shelf):
    """What the replicas share. clock: Unix seconds; on_change: told of each write that is done, with the record as it
    was before."""

    clock: Callable[[], float]
    lease_s: float
    on_change: Callable[[Record | None, Write], None] = lambda record, write: None
    leases: dict[str, float] = field(default_factory=dict)
    """Until when each replica counts as there."""
    terms: Counter[str] = field(default_factory=Counter)
    """How often each has lapsed."""
    presence: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Since when each was there without a gap, and its last heartbeat."""
    lapsed: set[str] = field(default_factory=set)
    """Those whose lease has run out although they live."""

    def current(self, session_id: str) -> Record | None:
        """The record of a session whose time is not over."""
        return self.find(session_id, self.clock())

    def is_there(self, owner: str) -> bool:
        """Whether a replica's lease holds."""
        return self.leases.get(owner, 0.0) > self.clock()

    def lose(self, rng: random.Random, *, is_all: bool) -> list[str]:
        """Forgets everything, or some records. Returns the ids of those that are gone."""
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
        """For how long another was there, at most, while a replica counted as gone, whose heartbeat this comes with."""
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
        """A heartbeat of a replica."""
        until_s = self.leases.get(owner)
        if until_s is None or until_s < self.clock():
            self.terms[owner] += 1
            if until_s is not None:
                self.lapsed.add(owner)
        self.leases[owner] = self.clock() + self.lease_s


@dataclass(slots=True)
class Faults:
    """What goes wrong with a store, and when. error_rate: of calls outside outages; clock: Unix seconds."""

    rng: random.Random
    clock: Callable[[], float]
    error_rate: float = 0.0
    outages: list[tuple[float, float]] = field(default_factory=list)
    is_down: bool = False
    """Set by a scenario: down until it is set back."""
    cuts: dict[str, float] = field(default_factory=dict)
    """Until when a replica's calls do not reach the store, by its name."""
    troubles: list[tuple[float, float]] = field(default_factory=list)
    """Between which times it did not answer at all, not always, or late."""

    def trouble_s(self, since: float) -> float:
        """For how many seconds since a time the store did not answer as it should."""
        now = self.clock()
        return sum(max(0.0, min(end, now) - max(begin, since)) for begin, end in self.troubles)

    def is_cut(self, replica: str) -> bool:
        """Whether nothing of a replica reaches the store."""
        return self.is_down or self.cuts.get(replica, 0.0) > self.clock()

    def strike(self, replica: str) -> bool:
        """Whether a call of a replica fails."""
        now = self.clock()
        if self.is_cut(replica) or any(begin <= now < end for begin, end in self.outages):
            return True
        return self.error_rate > 0.0 and self.rng.random() < self.error_rate


class SimulatedStore:
    """One replica's way to the shelf: a `StateStore`. life: the replica's."""

    def __init__(self, shelf: Shelf, owner: str, faults: Faults, life: Life) -> None:
        self.num_refused = 0
        """Writes that were refused, because the record was another's."""
        self._store = MemoryStore(shelf, clock=shelf.clock, owner=owner)
        self._shelf = shelf
        self._faults = faults
        self._life = life
        self._replica = life.name.partition(".")[0]
        shelf.beat(owner)

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
        return self._shelf.lease_s

    def heartbeat(self) -> Beat:
        """See `StateStore`."""
        self._check()
        self._shelf.beat(self._store.owner)
        owner = self._store.owner
        return self._store.heartbeat()._replace(
            term=str(self._shelf.terms[owner]), rivals_s=self._shelf.rivals_s(owner)
        )

    def let_go(self, session_id: str) -> None:
        """See `StateStore`."""
        self._check()
        self._store.let_go(session_id)

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
        self._shelf.leases.pop(self._store.owner, None)

    def _take(self, take: Callable[[], T]) -> T:
        """One that fails may have been carried out: its answer came too late."""
        is_struck = self._strikes()
        if not is_struck or (not self._is_cut and self._faults.rng.random() < 0.5):
            taken = take()
            if isinstance(taken, int) or (isinstance(taken, list) and any(isinstance(one, Claimed) for one in taken)):
                self._be_there()
            if not is_struck:
                return taken
        raise StoreError("the simulated store fails")

    def _be_there(self) -> None:
        """Who gets or makes a record counts as there."""
        if not self._shelf.is_there(self._store.owner):
            self._shelf.beat(self._store.owner)

    def _check(self) -> None:
        if self._strikes():
            raise StoreError("the simulated store fails")

    @property
    def _is_cut(self) -> bool:
        return self._faults.is_cut(self._replica)

    def _strikes(self) -> bool:
        """Whether a call fails. Raises StoreError for a replica that is dead: nothing of it reaches the store."""
        if self._life.is_over:
            raise StoreError("the process is dead")
        return self._faults.strike(self._replica)

    def _outcome(self, writes: Sequence[Write]) -> Written:
        outcomes = [self._write(write) for write in writes]
        refused, missing = (set[str]().union(*found) for found in zip(*outcomes, strict=True))
        return Written(refused, missing)

    def _write(self, write: Write) -> Written:
        record = self._shelf.current(write.session_id)
        before = None if record is None else replace(record)
        written = self._store.write([write])
        self.num_refused += len(written.refused)
        if not (written.refused or written.missing):
            self._shelf.on_change(before, write)
            if before is None:
                self._be_there()
        return written
