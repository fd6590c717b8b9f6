"""The thread that waits for a store, and what is known of the store's health.

Rules:

1. While the store fails, calls are refused at once, except one that tries it again from time to time. Those that waited
   when it failed fail with it, and no more than a number wait for it: nobody waits behind others' time-outs.
2. A record whose taking failed may be this process's all the same: the store can have done it later. It is let go as
   soon as the store answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from service.errors import StoreUnavailableError
from service.observer import StoreObserver
from service.sessions.stores.base import Beat, CorruptRecordError, StateStore, StoreError, Write, Written

_MAX_CALLS = 512
"""Reads and reservations that wait for the store."""
_RETRY_S = 0.5
"""Between two tries of a store that fails."""

T = TypeVar("T")


class StoreThread:
    """One store's. `call` from the event loop; what is for `call` or for the executor, on the thread."""

    def __init__(self, store: StateStore, observer: StoreObserver, clock: Callable[[], float]) -> None:
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._heart = ThreadPoolExecutor(1, thread_name_prefix="heartbeat")
        self._store = store
        self._observer = observer
        self._clock = clock
        self._failing: set[str] = set()
        self._tries_at_s = 0.0
        self._num_calls = 0
        self._failed_at_s = -1.0
        self._maybe_taken: set[str] = set()
        """The store's thread. See rule 2."""

    @property
    def is_failing(self) -> bool:
        """Whether the store failed when it was asked last."""
        return bool(self._failing)

    async def call(self, call: Callable[..., T], *args: Any, operation: str = "read") -> T:
        """Calls the store and returns what it returns. operation: as which it is counted. Raises StoreUnavailableError
        and CorruptRecordError."""
        if operation == "read":
            self._check_open()
        self._num_calls += 1
        try:
            result = await asyncio.get_running_loop().run_in_executor(
                self.executor, self._try, self._clock(), call, *args
            )
        except CorruptRecordError:
            raise
        except Exception as error:  # whatever it is, who asked is to be answered
            self.fails(error, operation)
            raise _unavailable() from error
        finally:
            self._num_calls -= 1
        self.works(operation)
        return result

    def _try(self, queued_at_s: float, call: Callable[..., T], *args: Any) -> T:
        """The store's thread. Raises StoreError at once when the store failed after the call was queued."""
        if queued_at_s <= self._failed_at_s:
            raise StoreError("it failed while the call waited for it")
        try:
            return call(*args)
        except CorruptRecordError:
            raise
        except StoreError:
            self._failed_at_s = self._clock()
            raise

    def take(self, take: Callable[..., T], record_id: str, *args: Any) -> T:
        """For `call`: takes a record."""
        if record_id in self._maybe_taken:
            self._store.let_go(record_id)
            self._maybe_taken.discard(record_id)
        try:
            return take(record_id, *args)
        except CorruptRecordError:
            raise
        except StoreError:
            self._maybe_taken.add(record_id)
            raise

    async def beat(self) -> Beat:
        """A heartbeat, on a thread of its own: it waits for nothing else. Raises StoreUnavailableError."""
        try:
            beat = await asyncio.get_running_loop().run_in_executor(self._heart, self._store.heartbeat)
        except Exception as error:
            self.fails(error, "heartbeat")
            raise _unavailable() from error
        self.works("heartbeat", "read")
        return beat

    async def let_go(self) -> None:
        """Lets go of what may have been taken: see rule 2. Raises StoreUnavailableError."""
        if self._maybe_taken:
            await self.call(self._let_go_all, operation="write")

    async def sweep(self, limit: int) -> int:
        """See `StateStore.sweep`. Raises StoreUnavailableError."""
        return await self.call(self._store.sweep, limit, operation="write")

    def shutdown(self) -> None:
        """Lets the threads end."""
        self.executor.shutdown(wait=False)
        self._heart.shutdown(wait=False)

    def _let_go_all(self) -> None:
        for record_id in list(self._maybe_taken):
            self._store.let_go(record_id)
            self._maybe_taken.discard(record_id)

    def _check_open(self) -> None:
        """Refuses a call while the store fails, or too many wait for it."""
        now_s = self._clock()
        if "read" in self._failing and (now_s < self._tries_at_s or self._num_calls):
            raise _unavailable()
        if self._num_calls >= _MAX_CALLS:
            raise StoreUnavailableError(
                f"{self._num_calls} requests wait for the session store, the most that may: try again later",
                retry_delay_s=0.5,
            )
        self._tries_at_s = now_s + _RETRY_S

    def write(self, writes: Sequence[Write]) -> Written:
        """For the executor: see `StateStore.write`."""
        try:
            return self._store.write(writes)
        except StoreError:
            self._failed_at_s = self._clock()
            raise

    def fails(self, error: Exception, operation: str) -> None:
        """The store failed."""
        self._tries_at_s = self._clock() + _RETRY_S
        was_failing = self.is_failing
        self._failing.add(operation)
        self._observer.operation_failed(operation)
        if not was_failing:
            self._observer.store_failed(error)

    def works(self, *operations: str) -> None:
        """The store works."""
        if self._failing:
            self._failing.difference_update(operations)
            if not self._failing:
                self._observer.store_recovered()


def _unavailable() -> StoreUnavailableError:
    return StoreUnavailableError("the session store does not answer: try again later", retry_delay_s=1.0)
