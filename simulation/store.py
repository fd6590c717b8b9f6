"""A store that two replicas share, and that fails, delays, forgets and reorders as the seed says.

A `StateStore` of the service over a `Shelf`. A replica counts as there for `lease_s` after its last heartbeat. Rules:

1. During an outage every call raises. At other times a call fails now and then.
2. A write that raises has changed none, some, or all of its records; a claim or a reservation that raises may have
   been carried out.
3. Nothing that was acknowledged is ever forgotten before its time is over.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from service.sessions.stores.base import Claimed, Gone, Held, Standing, StoreError, Write
from simulation.loop import Life

T = TypeVar("T")


@dataclass(slots=True)
class Record:
    """One session's record."""

    epoch: int
    owner: str
    standing: Standing
    payload: bytes | None
    expires_at: float


@dataclass(slots=True)
class Shelf:
    """What the replicas share. clock: Unix seconds; on_change: told of each write before it is done, with the record
    that is there."""

    clock: Callable[[], float]
    lease_s: float
    on_change: Callable[[Record | None, Write], None] = lambda record, write: None
    records: dict[str, Record] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    """Until when each replica counts as there."""
    wanted: dict[str, set[str]] = field(default_factory=dict)

    def find(self, session_id: str) -> Record | None:
        """The record of a session whose time is not over."""
        record = self.records.get(session_id)
        return None if record is None or record.expires_at <= self.clock() else record

    lapsed: set[str] = field(default_factory=set)
    """Those whose lease has run out although they live."""

    def is_there(self, owner: str) -> bool:
        """Whether a replica's lease holds."""
        return self.leases.get(owner, 0.0) > self.clock()


@dataclass(slots=True)
class Faults:
    """What goes wrong with a store, and when. error_rate: of calls outside outages; clock: Unix seconds."""

    rng: random.Random
    clock: Callable[[], float]
    error_rate: float = 0.0
    outages: list[tuple[float, float]] = field(default_factory=list)
    is_down: bool = False
    """Set by a scenario: down until it is set back."""

    def strike(self) -> bool:
        """Whether a call fails."""
        now = self.clock()
        if self.is_down or any(begin <= now < end for begin, end in self.outages):
            return True
        return self.error_rate > 0.0 and self.rng.random() < self.error_rate


class SimulatedStore:
    """One replica's way to the shelf. life: the replica's."""

    def __init__(self, shelf: Shelf, owner: str, faults: Faults, life: Life) -> None:
        self.owner = owner
        self.num_refused = 0
        """Writes that were refused, because the record was another's."""
        self._shelf = shelf
        self._faults = faults
        self._life = life
        self._beat()

    def reserve(self, session_id: str, expires_at: float) -> int | None:
        """See `StateStore`."""
        return self._take(partial(self._reserve, session_id, expires_at))

    def claim(self, session_id: str) -> Claimed | Held | Gone | None:
        """See `StateStore`."""
        return self._take(partial(self._claim, session_id))

    def _reserve(self, session_id: str, expires_at: float) -> int | None:
        record = self._shelf.find(session_id)
        if record is not None and record.standing is not Standing.GONE:
            return None
        epoch = 1 if record is None else record.epoch + 1
        self._shelf.records[session_id] = Record(epoch, self.owner, Standing.OWNED, None, expires_at)
        return epoch

    def has(self, session_id: str) -> bool:
        """See `StateStore`."""
        self._check()
        record = self._shelf.find(session_id)
        return record is not None and record.standing is not Standing.GONE

    def _claim(self, session_id: str) -> Claimed | Held | Gone | None:
        record = self._shelf.find(session_id)
        if record is None:
            return None
        if record.standing is Standing.GONE:
            return Gone(record.payload or b"")
        is_other = record.owner != self.owner and self._shelf.is_there(record.owner)
        if record.standing is Standing.OWNED and is_other:
            self._shelf.wanted.setdefault(record.owner, set()).add(session_id)
            return Held(record.owner)
        if record.standing is not Standing.OWNED or record.owner != self.owner:
            record.epoch += 1
            record.owner, record.standing = self.owner, Standing.OWNED
        return Claimed(record.epoch, record.payload)

    def write(self, writes: Sequence[Write]) -> set[str]:
        """See `StateStore`."""
        if self._life.is_over:
            raise StoreError("the process is dead")
        if self._faults.strike():
            num_done = self._faults.rng.choice([0, 0, len(writes), self._faults.rng.randrange(len(writes) + 1)])
            for write in writes[: 0 if self._faults.is_down else num_done]:
                self._write(write)
            raise StoreError("the simulated store fails")
        return {write.session_id for write in writes if not self._write(write)}

    def heartbeat(self) -> list[str]:
        """See `StateStore`."""
        self._check()
        self._beat()
        return sorted(self._shelf.wanted.pop(self.owner, ()))

    def let_go(self, session_id: str) -> None:
        """See `StateStore`."""
        self._check()
        record = self._shelf.find(session_id)
        if record is None or record.standing is not Standing.OWNED or record.owner != self.owner:
            return
        if record.payload is None:
            del self._shelf.records[session_id]
        else:
            record.standing = Standing.FREE

    def set_aside(self, session_id: str) -> None:
        """See `StateStore`."""
        self._check()
        self._shelf.records.pop(session_id, None)

    def sweep(self, limit: int) -> int:
        """See `StateStore`."""
        self._check()
        now = self._shelf.clock()
        expired = [name for name, record in self._shelf.records.items() if record.expires_at <= now][:limit]
        for name in expired:
            del self._shelf.records[name]
        return len(expired)

    def close(self) -> None:
        """See `StateStore`."""
        self._shelf.leases.pop(self.owner, None)

    def _take(self, take: Callable[[], T]) -> T:
        """One that fails may have been carried out: its answer came too late."""
        if self._life.is_over:
            raise StoreError("the process is dead")
        if not self._faults.strike():
            return take()
        if not self._faults.is_down and self._faults.rng.random() < 0.5:
            take()
        raise StoreError("the simulated store fails")

    def _check(self) -> None:
        if self._life.is_over:
            raise StoreError("the process is dead")
        if self._faults.strike():
            raise StoreError("the simulated store fails")

    def _beat(self) -> None:
        if self._shelf.leases.get(self.owner, self._shelf.clock()) < self._shelf.clock():
            self._shelf.lapsed.add(self.owner)
        self._shelf.leases[self.owner] = self._shelf.clock() + self._shelf.lease_s

    def _write(self, write: Write) -> bool:
        record = self._shelf.find(write.session_id)
        if record is None and write.epoch == 1:
            self._shelf.on_change(record, write)
            record = Record(1, self.owner, Standing.OWNED, None, 0.0)
            self._shelf.records[write.session_id] = record
        elif record is None or record.epoch != write.epoch or record.owner != self.owner:
            self.num_refused += 1
            return False
        else:
            self._shelf.on_change(record, write)
        record.standing, record.expires_at = write.standing, write.expires_at
        if write.payload is not None:
            record.payload = write.payload
        return True
