"""Records in LMDB: an embedded store, in a folder that one process uses at a time.

A batch of writes is one transaction, which is on disk when it returns. The map limits the size of the file; it grows
automatically.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import lmdb

from service.sessions.stores.base import (
    CLAIMED_S,
    Beat,
    Claim,
    Claimed,
    CorruptRecordError,
    Gone,
    Ownership,
    StoreError,
    Write,
    Written,
)
from service.sessions.stores.data_folder import DataFolder

_FORMAT = 1
_HEADER = struct.Struct("<HBBQd16s")
"""Format, ownership, whether there is a payload, epoch, expiry in Unix seconds, owner."""
_OWNERSHIPS = tuple(Ownership)
_DATABASES = (b"records", b"expiries", b"aside")
_INITIAL_BYTES = 64 * 1024 * 1024
_MAX_BYTES = 1 << 40

T = TypeVar("T")


class _Record(NamedTuple):
    epoch: int
    owner: str
    ownership: Ownership
    payload: bytes | None
    expires_at: float

    def encode(self) -> bytes:
        """Returns the record as a value of the database."""
        has_payload = self.payload is not None
        head = (_FORMAT, _OWNERSHIPS.index(self.ownership), has_payload, self.epoch, self.expires_at)
        return _HEADER.pack(*head, self.owner.encode()) + (self.payload or b"")


class LmdbStore:
    """A `StateStore`. folder: created if missing. clock: Unix seconds; None: the system's time, without its jumps while
    this process lives. initial_bytes, max_bytes: sizes of the map.

    Raises StoreError when the folder cannot be used, another process uses it, or its data file is damaged.
    """

    lease_s: float | None = None

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] | None = None,
        initial_bytes: int = _INITIAL_BYTES,
        max_bytes: int = _MAX_BYTES,
    ) -> None:
        self.owner = secrets.token_hex(8)
        self._clock = clock or _steady_clock()
        self._max_bytes = max_bytes
        self._folder = DataFolder(folder)
        try:
            self._environment, databases = self._folder.open_environment(_DATABASES, initial_bytes)
        except StoreError:
            self._folder.close()
            raise
        self._records, self._expiries, self._aside = databases

    def reserve(self, session_id: str, ttl_s: float) -> int | None:
        """See `StateStore`."""

        def act(transaction: lmdb.Transaction) -> int | None:
            record = self._find(transaction, session_id)
            if record is not None and not self._is_free(record.ownership, record.payload is not None, record.owner):
                return None
            epoch = 1 if record is None else record.epoch + 1
            reserved = _Record(epoch, self.owner, Ownership.OWNED, None, self._clock() + ttl_s)
            self._put(transaction, session_id, record, reserved)
            return epoch

        return self._change(act)

    def has(self, session_id: str) -> bool:
        """See `StateStore`. A record that cannot be read counts: its id is not free."""
        with self._reading() as transaction:
            value = transaction.get(session_id.encode())
        if value is None or len(value) < _HEADER.size:
            return value is not None
        number, ownership, has_payload, _, expires_at, owner = _HEADER.unpack_from(value)
        if number != _FORMAT:
            return True
        return expires_at > self._clock() and not self._is_free(_OWNERSHIPS[ownership], has_payload, owner.decode())

    def ids(self, prefix: str) -> list[str]:
        """See `StateStore`. Includes the ids of records that cannot be read."""
        start, now, found = prefix.encode(), self._clock(), []
        with self._reading() as transaction, transaction.cursor() as cursor:
            for key, value in cursor.iternext() if cursor.set_range(start) else ():
                if not key.startswith(start):
                    break
                if len(value) >= _HEADER.size and value[:2] == struct.pack("<H", _FORMAT):
                    _, ownership, _, _, expires_at, _ = _HEADER.unpack_from(value)
                    if expires_at <= now or _OWNERSHIPS[ownership] is Ownership.GONE:
                        continue
                found.append(key.decode())
        return found

    def claim(self, session_ids: Sequence[str]) -> list[Claim]:
        """See `StateStore`. The record of any other process is free: that process is gone, because this one holds the
        folder."""

        def act(transaction: lmdb.Transaction) -> list[Claim]:
            return [self._claim(transaction, session_id) for session_id in session_ids]

        return self._change(act)

    def ask(self, owner: str, session_ids: Sequence[str]) -> set[str]:
        """See `StateStore`. No other process uses the folder."""
        return set(session_ids)

    def write(self, writes: Sequence[Write]) -> Written:
        """See `StateStore`."""

        def act(transaction: lmdb.Transaction) -> Written:
            written = Written(set(), set())
            for write in writes:
                self._write(transaction, write, written)
            return written

        return self._change(act)

    def heartbeat(self) -> Beat:
        """See `StateStore`. No other process can want a record. Raises StoreError when the folder was removed or
        replaced."""
        self._folder.check()
        return Beat("", [])

    def undo_claim(self, session_id: str) -> None:
        """See `StateStore`."""

        def act(transaction: lmdb.Transaction) -> None:
            try:
                record = self._find(transaction, session_id)
            except CorruptRecordError:
                return
            if record is None or record.ownership is not Ownership.OWNED or record.owner != self.owner:
                return
            if record.payload is not None:
                self._put(transaction, session_id, record, record._replace(ownership=Ownership.FREE))
            else:
                transaction.delete(session_id.encode(), db=self._records)
                transaction.delete(_milliseconds(record.expires_at) + session_id.encode(), db=self._expiries)

        self._change(act)

    def set_aside(self, session_id: str) -> None:
        """See `StateStore`."""

        def act(transaction: lmdb.Transaction) -> None:
            key = session_id.encode()
            value = transaction.pop(key, db=self._records)
            if value is not None:
                transaction.put(key, value, db=self._aside)

        self._change(act)

    def risk(self) -> str:
        """See `StateStore`."""
        return ""

    def sweep(self, limit: int) -> int:
        """See `StateStore`."""

        def act(transaction: lmdb.Transaction) -> int:
            now, count = _milliseconds(self._clock()), 0
            with transaction.cursor(db=self._expiries) as cursor:
                while count < limit and cursor.first() and bytes(cursor.key()[:8]) <= now:
                    transaction.delete(bytes(cursor.key()[8:]), db=self._records)
                    cursor.delete()
                    count += 1
            return count

        return self._change(act)

    def close(self) -> None:
        """See `StateStore`."""
        self._environment.close()
        self._folder.close()

    def _is_free(self, ownership: Ownership, has_payload: bool, owner: str) -> bool:
        """Whether a record's id may be reserved: its session has ended, or another owner never wrote it. Every other
        owner is gone, because this process holds the folder."""
        if has_payload or ownership is not Ownership.OWNED:
            return ownership is Ownership.GONE
        return owner != self.owner

    def _claim(self, transaction: lmdb.Transaction, session_id: str) -> Claim:
        now = self._clock()
        try:
            record = self._find(transaction, session_id)
        except CorruptRecordError as error:
            return error
        if record is None:
            return None
        if record.ownership is Ownership.GONE:
            return Gone(record.payload or b"")
        if record.ownership is not Ownership.OWNED or record.owner != self.owner:
            before, expires_at = record, max(record.expires_at, now + CLAIMED_S)
            record = _Record(record.epoch + 1, self.owner, Ownership.OWNED, record.payload, expires_at)
            self._put(transaction, session_id, before, record)
        return Claimed(record.epoch, record.payload, record.expires_at - now)

    def _write(self, transaction: lmdb.Transaction, write: Write, written: Written) -> None:
        try:
            record = self._find(transaction, write.session_id)
        except CorruptRecordError:
            written.refused.add(write.session_id)
            return
        if record is None and (write.payload is None or not write.makes):
            written.missing.add(write.session_id)
            return
        is_over = record is not None and record.ownership is Ownership.GONE and write.ownership is not Ownership.GONE
        is_others = record is not None and (record.epoch != write.epoch or record.owner != self.owner)
        if is_over or is_others:
            written.refused.add(write.session_id)
            return
        payload = write.payload if record is None or write.payload is not None else record.payload
        after = _Record(write.epoch, self.owner, write.ownership, payload, self._clock() + write.ttl_s)
        self._put(transaction, write.session_id, record, after)

    def _put(self, transaction: lmdb.Transaction, session_id: str, before: _Record | None, record: _Record) -> None:
        key = session_id.encode()
        if before is None or before.expires_at != record.expires_at:
            if before is not None:
                transaction.delete(_milliseconds(before.expires_at) + key, db=self._expiries)
            transaction.put(_milliseconds(record.expires_at) + key, b"", db=self._expiries)
        transaction.put(key, record.encode(), db=self._records)

    def _find(self, transaction: lmdb.Transaction, session_id: str) -> _Record | None:
        """Returns a record that has not expired. Raises CorruptRecordError."""
        key = session_id.encode()
        value = transaction.get(key, db=self._records)
        if value is None:
            return None
        if len(value) < _HEADER.size or value[:2] != struct.pack("<H", _FORMAT):
            raise CorruptRecordError(f"the record of session {session_id!r} cannot be read")
        _, ownership, has_payload, epoch, expires_at, owner = _HEADER.unpack_from(value)
        if expires_at <= self._clock():
            transaction.delete(_milliseconds(expires_at) + key, db=self._expiries)
            transaction.delete(key, db=self._records)
            return None
        payload = bytes(value[_HEADER.size :]) if has_payload else None
        return _Record(epoch, owner.decode(), _OWNERSHIPS[ownership], payload, expires_at)

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        """Begins a transaction that reads records. Raises StoreError."""
        self._folder.check()
        try:
            with self._environment.begin(db=self._records) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise StoreError(f"the embedded store cannot be read: {error}") from error

    def _change(self, act: Callable[[lmdb.Transaction], T]) -> T:
        """Runs a transaction. Repeats it with a larger map when it does not fit. Raises StoreError also when the data
        file was removed or replaced meanwhile, because the changes are lost."""
        while True:
            self._folder.check()
            try:
                with self._environment.begin(write=True) as transaction:
                    result = act(transaction)
                self._folder.check()
                return result
            except lmdb.MapFullError as error:
                size = 2 * self._environment.info()["map_size"]
                if size > self._max_bytes:
                    raise StoreError(f"the embedded store is full: {size // 2} bytes") from error
                self._environment.set_mapsize(size)
            except lmdb.Error as error:
                raise StoreError(f"the embedded store cannot be written: {error}") from error


def _steady_clock() -> Callable[[], float]:
    """Returns a clock of Unix seconds that ignores later changes of the system's time, so that no such change expires a
    record."""
    began_s = time.time() - time.monotonic()
    return lambda: began_s + time.monotonic()


def _milliseconds(time_s: float) -> bytes:
    """Returns a time in milliseconds as bytes that sort in order of time."""
    return struct.pack(">Q", max(0, round(time_s * 1000)))
