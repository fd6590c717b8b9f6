"""A store of records, for the event loop: a thread that waits for it, and writes that gather while it does.

Rules:

1. Writes of one session reach the store in the order in which they were put; of those that wait, only the last is
   written.
2. All that waits is written in one go, as soon as the store has done with what it had: the slower it is, the more a
   batch.
3. When the store fails, every write of that batch has failed. It is told of once, and once when it works again. Who put
   a write decides whether to put another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import Enum
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

from service.errors import SnapshotCorruptError, StoreUnavailableError
from service.observer import StoreObserver
from service.sessions.image import Image
from service.sessions.session import name_of
from service.sessions.snapshot import Codec
from service.sessions.stores.base import (
    Claimed,
    CorruptRecordError,
    Gone,
    Held,
    Standing,
    StateStore,
    StoreError,
    Write,
)

_BATCH = 1024
_SWEEP = 1000
_SWEEP_EVERY = 50
"""Heartbeats between two sweeps."""

T = TypeVar("T")


class Outcome(Enum):
    """What became of a write. REFUSED: the record is another's now."""

    STORED = "stored"
    REFUSED = "refused"
    FAILED = "failed"


Then = Callable[[Outcome], None]


class Put(NamedTuple):
    """A write of an image, or of the words that are to be remembered of a session that is gone, or of neither: see
    `Write`."""

    session_id: str
    epoch: int
    image: Image | None
    expires_at: float
    standing: Standing = Standing.OWNED
    epitaph: bytes | None = None


class Storage:
    """One store. heartbeat_s: between two heartbeats; on_wanted: told which sessions other servers want."""

    def __init__(
        self,
        store: StateStore,
        codec: Codec,
        observer: StoreObserver,
        *,
        heartbeat_s: float = 0.1,
        on_wanted: Callable[[str], None] = lambda session_id: None,
    ) -> None:
        self.codec = codec
        self.on_wanted = on_wanted
        self.is_failing = False
        self._store = store
        self.observer = observer
        self._heartbeat_s = heartbeat_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._pending: dict[str, tuple[Put, list[Then]]] = {}
        self._has_pending = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to write, and to tell the store that this server is there."""
        self._tasks = [asyncio.create_task(self._write_for_ever()), asyncio.create_task(self._beat_for_ever())]

    async def stop(self, timeout_s: float) -> None:
        """Writes what waits, for so long at most, and lets go of the store."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.drained(), timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(StoreError):
            await asyncio.get_running_loop().run_in_executor(self._thread, self._store.close)
        self._thread.shutdown(wait=False)

    async def drained(self) -> None:
        """Returns when no write waits."""
        await self._is_idle.wait()

    def put(self, put: Put, then: Then) -> None:
        """Has a record written. `then` is called on the event loop."""
        before = self._pending.pop(put.session_id, None)
        calls = [then]
        if before is not None:
            earlier, thens = before
            calls = [*thens, then]
            if put.image is None and put.epitaph is None and earlier.epoch == put.epoch:
                put = put._replace(image=earlier.image)
        self._pending[put.session_id] = (put, calls)
        self._is_idle.clear()
        self._has_pending.set()

    async def claim(self, session_id: str) -> Claimed | Held | Gone | None:
        """See `StateStore.claim`. What waits to be written of the session is written before. Raises
        StoreUnavailableError, and SnapshotCorruptError for a record that cannot be read, which is set aside."""
        if session_id in self._pending:
            await self.drained()
        began_s = perf_counter()
        try:
            claimed = await self._call(self._store.claim, session_id)
        except CorruptRecordError as error:
            await self.set_aside(session_id, error)
            raise SnapshotCorruptError(
                f"the record of session {name_of(session_id)!r} cannot be read, and was set aside",
                session_id=name_of(session_id),
            ) from error
        self.observer.record_read(perf_counter() - began_s)
        return claimed

    async def reserve(self, session_id: str, expires_at: float) -> int | None:
        """See `StateStore.reserve`. Raises StoreUnavailableError."""
        return await self._call(self._store.reserve, session_id, expires_at)

    async def set_aside(self, session_id: str, error: Exception) -> None:
        """Moves a record that cannot be read out of the way, and reports it."""
        self.observer.record_corrupt(session_id, error)
        await self._call(self._store.set_aside, session_id)

    async def _call(self, call: Callable[..., T], *args: Any) -> T:
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)
        except CorruptRecordError:
            raise
        except StoreError as error:
            self._fails(error, "heartbeat" if call in (self._store.heartbeat, self._store.sweep) else "read")
            raise StoreUnavailableError(
                "the session store does not answer: try again later", retry_delay_s=1.0
            ) from error
        self._works()
        return result

    async def _write_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._has_pending.wait()
            names = list(self._pending)[:_BATCH]
            batch = [self._pending.pop(name) for name in names]
            if not self._pending:
                self._has_pending.clear()
            began_s = perf_counter()
            refused: set[str] = set()
            failure: Exception | None = None
            try:
                refused, sizes = await loop.run_in_executor(self._thread, self._write, [put for put, _ in batch])
            except Exception as error:  # a bug of ours must not end the writing for all
                failure = error
                self._fails(error, "write")
            else:
                self._works()
                self.observer.records_written(sizes, perf_counter() - began_s)
            for put, thens in batch:
                outcome = Outcome.REFUSED if put.session_id in refused else Outcome.STORED
                for then in thens:
                    then(outcome if failure is None else Outcome.FAILED)
            if not self._pending:
                self._is_idle.set()

    def _write(self, puts: Sequence[Put]) -> tuple[set[str], list[int]]:
        """The store's thread. Returns the ids that were refused, and the sizes of the images that were written."""
        writes = []
        for put in puts:
            payload = put.epitaph if put.image is None else self.codec.encode(put.image)
            writes.append(Write(put.session_id, put.epoch, payload, put.expires_at, put.standing))
        return self._store.write(writes), [
            len(write.payload or b"") for put, write in zip(puts, writes, strict=True) if put.image is not None
        ]

    async def _beat_for_ever(self) -> None:
        beats = 0
        while True:
            await asyncio.sleep(self._heartbeat_s)
            beats += 1
            with suppress(StoreUnavailableError):
                for session_id in await self._call(self._store.heartbeat):
                    asyncio.get_running_loop().call_soon(self.on_wanted, session_id)
                if beats % _SWEEP_EVERY == 0:
                    await self._call(self._store.sweep, _SWEEP)

    def _fails(self, error: Exception, operation: str) -> None:
        self.observer.operation_failed(operation)
        if not self.is_failing:
            self.is_failing = True
            self.observer.store_failed(error)

    def _works(self) -> None:
        if self.is_failing:
            self.is_failing = False
            self.observer.store_recovered()
