"""Records in this process's memory. They are lost when the process ends."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.sessions.stores.base import (
    CLAIMED_S,
    Beat,
    Claim,
    Claimed,
    Gone,
    Held,
    Ownership,
    Write,
    Written,
    id_of,
    if_idle,
)


@dataclass(slots=True)
class Record:
    """One session's record. expires_at: seconds of the stores' clock."""

    epoch: int
    owner: str
    ownership: Ownership
    payload: bytes | None
    expires_at: float


@dataclass(slots=True)
class SharedRecords:
    """Records that several memory stores may share, as replicas share a Redis."""

    records: dict[str, Record] = field(default_factory=dict)
    owners: dict[str, set[str]] = field(default_factory=dict)
    """The processes that are alive, each with the ids that others want from it."""
    aside: dict[str, Record] = field(default_factory=dict)

    def find(self, session_id: str, now: float) -> Record | None:
        """Returns the record of a session unless it has expired. now: seconds of the stores' clock."""
        record = self.records.get(session_id)
        return None if record is None or record.expires_at <= now else record

    def is_there(self, owner: str) -> bool:
        """Whether a store's process counts as alive: until it closes its store."""
        return owner in self.owners


class MemoryStore:
    """A `StateStore`. shared: what it shares with other stores. clock: seconds. owner: the unique name of this process;
    None generates one."""

    lease_s: float | None = None

    def __init__(
        self,
        shared: SharedRecords | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        owner: str | None = None,
    ) -> None:
        self.owner = secrets.token_hex(8) if owner is None else owner
        self._shared = SharedRecords() if shared is None else shared
        self._clock = clock
        self._shared.owners[self.owner] = set()

    def reserve(self, session_id: str, ttl_s: float) -> int | None:
        """See `StateStore`."""
        record = self._shared.find(session_id, self._clock())
        if record is not None and not self._is_free(record):
            return None
        epoch = 1 if record is None else record.epoch + 1
        self._shared.records[session_id] = Record(epoch, self.owner, Ownership.OWNED, None, self._clock() + ttl_s)
        self._forget_wanted(session_id)
        return epoch

    def has(self, session_id: str) -> bool:
        """See `StateStore`."""
        record = self._shared.find(session_id, self._clock())
        return record is not None and not self._is_free(record)

    def ids(self, prefix: str) -> list[str]:
        """See `StateStore`."""
        now, found = self._clock(), []
        for session_id in sorted(self._shared.records):
            record = self._shared.find(session_id, now) if session_id.startswith(prefix) else None
            if record is not None and record.ownership is not Ownership.GONE:
                found.append(session_id)
        return found

    def claim(self, session_ids: Sequence[str]) -> list[Claim]:
        """See `StateStore`."""
        return [self._claim(session_id) for session_id in session_ids]

    def ask(self, owner: str, session_ids: Sequence[str]) -> set[str]:
        """See `StateStore`."""
        if not self._shared.is_there(owner):
            return set(session_ids)
        now = self._clock()
        held = {
            session_id
            for session_id in session_ids
            if (record := self._shared.find(id_of(session_id), now)) is not None
            and (record.ownership, record.owner) == (Ownership.OWNED, owner)
        }
        self._shared.owners[owner] |= held
        return set(session_ids) - held

    def _claim(self, session_id: str) -> Claim:
        record = self._shared.find(session_id, self._clock())
        if record is None:
            return None
        if record.ownership is Ownership.GONE:
            return Gone(record.payload or b"")
        is_others = record.owner != self.owner and self._shared.is_there(record.owner)
        if record.ownership is Ownership.OWNED and is_others:
            return Held(record.owner, record.payload)
        if record.ownership is not Ownership.OWNED or record.owner != self.owner:
            record.epoch += 1
            record.owner, record.ownership = self.owner, Ownership.OWNED
            record.expires_at = max(record.expires_at, self._clock() + CLAIMED_S)
            self._forget_wanted(session_id)
        return Claimed(record.epoch, record.payload, record.expires_at - self._clock())

    def write(self, writes: Sequence[Write]) -> Written:
        """See `StateStore`."""
        refused, missing = set(), set()
        for write in writes:
            record = self._shared.find(write.session_id, self._clock())
            if record is None and (write.payload is None or not write.makes):
                missing.add(write.session_id)
                continue
            if record is None:
                record = Record(write.epoch, self.owner, Ownership.OWNED, None, 0.0)
                self._shared.records[write.session_id] = record
            is_over = record.ownership is Ownership.GONE and write.ownership is not Ownership.GONE
            if is_over or record.epoch != write.epoch or record.owner != self.owner:
                refused.add(write.session_id)
                continue
            record.ownership, record.expires_at = write.ownership, self._clock() + write.ttl_s
            if write.payload is not None:
                record.payload = write.payload
        return Written(refused, missing)

    def heartbeat(self) -> Beat:
        """See `StateStore`."""
        wanted, self._shared.owners[self.owner] = self._shared.owners.get(self.owner, set()), set()
        return Beat("", sorted(wanted))

    def undo_claim(self, session_id: str) -> None:
        """See `StateStore`."""
        record = self._shared.find(session_id, self._clock())
        if record is None or record.ownership is not Ownership.OWNED or record.owner != self.owner:
            return
        if record.payload is None:
            del self._shared.records[session_id]
        else:
            record.ownership = Ownership.FREE

    def set_aside(self, session_id: str) -> None:
        """See `StateStore`."""
        self._shared.aside[session_id] = self._shared.records.pop(session_id)

    def risk(self) -> str:
        """See `StateStore`."""
        return ""

    def sweep(self, limit: int) -> int:
        """See `StateStore`."""
        now = self._clock()
        expired = [name for name, record in self._shared.records.items() if record.expires_at <= now][:limit]
        for name in expired:
            del self._shared.records[name]
        return len(expired)

    def close(self) -> None:
        """See `StateStore`."""
        self._shared.owners.pop(self.owner, None)

    def _is_free(self, record: Record) -> bool:
        """Whether a record's id may be reserved: its session has ended, or its owner is gone and never wrote it."""
        if record.payload is not None or record.ownership is not Ownership.OWNED:
            return record.ownership is Ownership.GONE
        return record.owner != self.owner and not self._shared.is_there(record.owner)

    def _forget_wanted(self, session_id: str) -> None:
        self._shared.owners.get(self.owner, set()).difference_update((session_id, if_idle(session_id)))
