"""A store of records for the event loop: a thread calls the store, and writes are collected while it works.

Rules:

1. Writes of one record reach the store in the order of their `put`. Of several waiting writes of one record, only the
   last is written.
2. All waiting writes go to the store in one batch, up to a number of records and of bytes, as soon as the previous
   batch is done. So a slower store gets larger batches.
3. When the store fails, every write of that batch fails. The caller of `put` decides whether to put again.
4. No exception of a callback, and no record that cannot be encoded, stops the writing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import Enum
from time import perf_counter
from typing import NamedTuple

from service.errors import SnapshotCorruptError, guarded
from service.observer import StoreObserver
from service.sessions.heartbeats import Heartbeats
from service.sessions.image import Image
from service.sessions.record_cipher import RecordCipher
from service.sessions.session import name_of
from service.sessions.snapshot import Codec
from service.sessions.store_thread import StoreThread
from service.sessions.stores.base import (
    Beat,
    Claim,
    Claimed,
    CorruptRecordError,
    Gone,
    Held,
    Ownership,
    StateStore,
    Write,
    Written,
)

HEARTBEAT_S = 0.1
"""Seconds between two heartbeats, unless the leases are short."""
_MAX_RECORDS = 1024
_MAX_BYTES = 32 * 1024 * 1024
"""The limit of one batch of writes."""


class WriteResult(Enum):
    """The result of a write. REFUSED: another server owns the record, or its session has ended. MISSING: the store has
    no record, and the write was not allowed to create one."""

    STORED = "stored"
    REFUSED = "refused"
    MISSING = "missing"
    FAILED = "failed"


Then = Callable[[WriteResult], None]


class Put(NamedTuple):
    """A write of an image, of a tombstone, or of neither: see `Write`. record_id: the session's id, or another name
    that no client can choose. make_until_s: the monotonic time until which the write may create a missing record.
    put_s: the monotonic time of the `put`, for an open session. gone_by_s: the monotonic time from which the store must
    have no record, however late the write is."""

    record_id: str
    epoch: int
    image: Image | None
    ttl_s: float
    ownership: Ownership = Ownership.OWNED
    tombstone: bytes | None = None
    make_until_s: float = math.inf
    put_s: float = -math.inf
    gone_by_s: float = math.inf


class Storage:
    """One store. cipher: encrypts the stored payloads. heartbeat_s: seconds between two heartbeats. clock: monotonic
    seconds."""

    def __init__(
        self,
        store: StateStore,
        codec: Codec,
        observer: StoreObserver,
        *,
        cipher: RecordCipher | None = None,
        heartbeat_s: float = HEARTBEAT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.codec = codec
        self.observer = observer
        self._cipher = cipher or RecordCipher()
        self._store = store
        self._clock = clock
        self._thread = StoreThread(store, observer, clock)
        self._heartbeats = Heartbeats(self._thread, heartbeat_s, clock)
        self._pending: dict[str, tuple[Put, list[Then]]] = {}
        self._writing: set[str] = set()
        self._written: dict[str, asyncio.Future[None]] = {}
        self._has_pending = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(
        self,
        on_wanted: Callable[[str], None],
        on_beat: Callable[[float, Beat], None] = lambda sent_s, beat: None,
        on_missed: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts the writes and the heartbeats. on_wanted: called with the ids that other servers want. on_beat: called
        after each heartbeat that the store answered, with the monotonic time at which it was sent, and the answer.
        on_missed: called after each failed heartbeat."""
        self._tasks = [
            asyncio.create_task(self._write_for_ever()),
            *self._heartbeats.start(on_wanted, on_beat, on_missed),
        ]

    async def stop(self, timeout_s: float) -> None:
        """Writes what waits, for at most `timeout_s`, and closes the store."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.drained(), timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._thread.close()

    @property
    def lease_s(self) -> float | None:
        """See `StateStore`."""
        return self._store.lease_s

    def hasten_heartbeat(self) -> None:
        """Sends a heartbeat at once."""
        self._heartbeats.hasten()

    @property
    def is_failing(self) -> bool:
        """See `StoreThread.is_failing`."""
        return self._thread.is_failing

    async def drained(self) -> None:
        """Returns when no write waits."""
        await self._is_idle.wait()

    def put(self, put: Put, then: Then) -> None:
        """Queues a write of a record. `then` is called on the event loop."""
        before = self._pending.pop(put.record_id, None)
        calls = [then]
        if before is not None:
            earlier, thens = before
            would_revive = earlier.ownership is Ownership.GONE and put.ownership is not Ownership.GONE
            if would_revive and earlier.epoch == put.epoch:
                self._pending[put.record_id] = before  # the session has ended: later writes are refused
                asyncio.get_running_loop().call_soon(then, WriteResult.REFUSED)
                return
            calls = [*thens, then]
            if put.image is None and put.tombstone is None and earlier.epoch == put.epoch:
                put = put._replace(image=earlier.image, tombstone=earlier.tombstone)
        self._pending[put.record_id] = (put, calls)
        self._is_idle.clear()
        self._has_pending.set()

    async def claim(self, record_id: str) -> Claimed | Held | Gone | None:
        """See `StateStore.claim`. Waits for queued writes of the record first. When the answer of a claim is lost, the
        record is released later. Raises StoreUnavailableError, and SnapshotCorruptError for a record that cannot be
        read and was set aside."""
        return await self._claim(record_id, self._thread.claim)

    async def claim_again(self, record_id: str) -> Claimed | Held | Gone | None:
        """As `claim`, for the record of a session of this server. The record stays owned when the answer is lost."""
        return await self._claim(record_id, self._thread.claim_again)

    async def ask(self, owner: str, record_ids: Sequence[str]) -> set[str]:
        """See `StateStore.ask`. Raises StoreUnavailableError."""
        return await self._thread.call(self._store.ask, owner, record_ids)

    async def reserve(self, record_id: str, ttl_s: float) -> int | None:
        """See `StateStore.reserve`. Raises what `claim` raises."""
        await self.after_writes(record_id)
        try:
            return await self._thread.reserve(record_id, ttl_s)
        except CorruptRecordError as error:
            raise await self._corrupt(record_id, error) from error

    async def has(self, record_id: str) -> bool:
        """See `StateStore.has`. Raises StoreUnavailableError."""
        await self.after_writes(record_id)
        return await self._thread.call(self._store.has, record_id)

    async def ids(self, prefix: str) -> list[str]:
        """See `StateStore.ids`. Raises StoreUnavailableError."""
        return await self._thread.call(self._store.ids, prefix)

    async def decode(self, record_id: str, payload: bytes) -> Image:
        """Returns the image in a claimed record. Raises what `image_in` raises. A corrupt record is set aside."""
        try:
            return self.image_in(record_id, payload)
        except SnapshotCorruptError as error:
            await self.set_aside(record_id, error)
            raise

    def image_in(self, record_id: str, payload: bytes) -> Image:
        """Returns the image in a record. Raises what `RecordCipher.decrypt` and `Codec.decode` raise."""
        return self.codec.decode(self._cipher.decrypt(record_id, payload), field="session_id")

    async def set_aside(self, record_id: str, error: Exception) -> None:
        """Moves an unreadable record to a separate place in the store, and reports it."""
        self.observer.record_corrupt(record_id, error)
        await self._thread.call(self._store.set_aside, record_id)

    def undo_claim(self, record_id: str) -> None:
        """Releases a record that this server owns although it has no such session: see `StateStore`."""
        self._thread.maybe_taken.add(record_id)

    async def _claim(self, record_id: str, claim: Callable[[str], Awaitable[Claim]]) -> Claimed | Held | Gone | None:
        await self.after_writes(record_id)
        began_s = perf_counter()
        claimed = await claim(record_id)
        if isinstance(claimed, CorruptRecordError):
            raise await self._corrupt(record_id, claimed) from claimed
        self.observer.record_read(perf_counter() - began_s)
        return claimed

    async def _corrupt(self, record_id: str, error: CorruptRecordError) -> SnapshotCorruptError:
        """Sets a record aside. Returns the error for it."""
        await self.set_aside(record_id, error)
        return SnapshotCorruptError(
            f"the record of session {name_of(record_id)!r} cannot be read, and was quarantined",
            session_id=name_of(record_id),
        )

    async def after_writes(self, record_id: str) -> None:
        """Returns when no write of the record is queued or in progress."""
        while record_id in self._pending or record_id in self._writing:
            written = self._written.get(record_id)
            if written is None:
                written = self._written[record_id] = asyncio.get_running_loop().create_future()
            await asyncio.shield(written)

    async def _write_for_ever(self) -> None:
        while True:
            await self._has_pending.wait()
            try:
                await self._write_batch()
            except Exception as error:  # a bug here must not stop all writing
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "writing to the session store failed", "exception": error}
                )

    async def _write_batch(self) -> None:
        batch: list[tuple[Put, list[Then]]] = []
        num_bytes = 0
        while self._pending and len(batch) < _MAX_RECORDS and num_bytes < _MAX_BYTES:
            record_id = next(iter(self._pending))
            put, thens = self._pending.pop(record_id)
            self._writing.add(record_id)
            num_bytes += 0 if put.image is None else put.image.num_bytes
            batch.append((put, thens))
        if not self._pending:
            self._has_pending.clear()
        began_s = perf_counter()
        written = Written(set(), set())
        failed: set[str] = {put.record_id for put, _ in batch}
        try:
            written, failed, sizes = await asyncio.get_running_loop().run_in_executor(
                self._thread.executor, self._write, [put for put, _ in batch]
            )
        except Exception as error:  # an error of the store, or a bug here
            guarded(self._thread.fails, error, "write")
        else:
            if len(failed) < len(batch):
                guarded(self._thread.works, "write")
            guarded(self.observer.records_written, sizes, perf_counter() - began_s)
        for put, thens in batch:
            self._writing.discard(put.record_id)
            result = WriteResult.STORED
            if put.record_id in failed:
                result = WriteResult.FAILED
            elif put.record_id in written.refused:
                result = WriteResult.REFUSED
            elif put.record_id in written.missing:
                result = WriteResult.MISSING
            for then in thens:
                guarded(then, result)
            waiting = self._written.pop(put.record_id, None)
            if waiting is not None:
                waiting.set_result(None)
        if not self._pending:
            self._is_idle.set()

    def _payload(self, record_id: str, image: Image) -> bytes:
        return self._cipher.encrypt(record_id, self.codec.encode(image))

    def _write(self, puts: Sequence[Put]) -> tuple[Written, set[str], list[int]]:
        """Writes a batch; runs on the store's thread. Returns the store's result, the ids that could not be encoded,
        and the sizes of the written images."""
        writes: list[Write] = []
        sizes: list[int] = []
        failed: set[str] = set()
        for put in puts:
            try:
                payload = put.tombstone if put.image is None else self._payload(put.record_id, put.image)
            except Exception as error:  # the other records can still be written
                failed.add(put.record_id)
                self.observer.record_corrupt(put.record_id, error)
                continue
            now_s = self._clock()
            ttl_s, makes = min(put.ttl_s, max(0.0, put.gone_by_s - now_s)), now_s <= put.make_until_s
            writes.append(Write(put.record_id, put.epoch, payload, ttl_s, put.ownership, makes))
            if put.image is not None and payload is not None:
                sizes.append(len(payload))
        return self._thread.write(writes), failed, sizes
