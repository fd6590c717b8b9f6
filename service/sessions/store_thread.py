"""The thread that calls a store, and what is known about the store's health.

Rules:

1. While the store fails, calls are refused at once, except one attempt from time to time. Calls that were waiting when
   it failed fail, too. The number of waiting calls is limited. So no call waits for the time-outs of others.
2. Writes count as failing until they have succeeded for some time after the last failure; this time grows with repeated
   failures. On a full disk, a small write may succeed between two that fail. Only writes of records, and probes (which
   write a record of their own), show whether writes succeed.
3. A claim or reservation that failed may have succeeded in the store later. Its record is released as soon as the store
   answers.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from service.errors import StoreUnavailableError
from service.observer import StoreObserver
from service.sessions.stores.base import NO_ID, Beat, Claim, CorruptRecordError, StateStore, StoreError, Write, Written

_MAX_CALLS = 512
"""The limit of reads and reservations that wait for the store."""
_CLAIMS = 256
"""The limit of one batch of claims."""
_MAX_CLAIMS = 4096
"""The limit of claims that wait for the store."""
_RETRY_S = 0.5
"""Seconds between two attempts while the store fails."""

_RECOVERY_S, _MAX_RECOVERY_S = 1.0, 10.0
"""For how many seconds writes must succeed: after the first failure, and at most after repeated ones."""
_PROBE_TTL_S = 60.0

T = TypeVar("T")


class StoreThread:
    """The thread of one store. Use `call` and the other coroutines from the event loop; functions passed to `call` or
    to the executor run on the thread."""

    def __init__(self, store: StateStore, observer: StoreObserver, clock: Callable[[], float]) -> None:
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._heart = ThreadPoolExecutor(1, thread_name_prefix="heartbeat")
        self._store = store
        self._observer = observer
        self._clock = clock
        self._failing: set[str] = set()
        self._risk = ""
        self._write_failed_at_s = -math.inf
        self._recovery_s = _RECOVERY_S
        self._tries_at_s = 0.0
        self._num_calls = 0
        self._failed_at_s = -1.0
        self._claims: list[tuple[str, asyncio.Future[Claim]]] = []
        self._claiming: asyncio.Task[None] | None = None
        self.maybe_taken: set[str] = set()
        """Records that may be owned: see rule 3. Only the store's thread removes entries."""

    @property
    def is_failing(self) -> bool:
        """Whether an operation failed and has not succeeded since. For writes, see rule 2."""
        return bool(self._failing)

    async def call(self, call: Callable[..., T], *args: Any, operation: str = "read") -> T:
        """Calls the store and returns its result. operation: the name under which failures count. Raises
        StoreUnavailableError and CorruptRecordError."""
        if operation == "read":
            self._check_available()
        self._num_calls += 1
        try:
            result = await asyncio.get_running_loop().run_in_executor(
                self.executor, self._try, self._clock(), call, *args
            )
        except CorruptRecordError:
            raise
        except Exception as error:  # every error must reach the caller
            self.fails(error, operation)
            raise _unavailable() from error
        finally:
            self._num_calls -= 1
        self.works(operation)
        return result

    def _try(self, queued_at_s: float, call: Callable[..., T], *args: Any) -> T:
        """Runs on the store's thread. Raises StoreError at once when the store failed after the call was queued."""
        if queued_at_s <= self._failed_at_s:
            raise StoreError("the store failed while the call waited")
        try:
            return call(*args)
        except CorruptRecordError:
            raise
        except StoreError:
            self._failed_at_s = self._clock()
            raise

    async def reserve(self, record_id: str, ttl_s: float) -> int | None:
        """See `StateStore.reserve`. Raises what `call` raises."""
        return await self.call(self._take, [record_id], lambda: self._store.reserve(record_id, ttl_s))

    async def claim(self, record_id: str) -> Claim:
        """See `StateStore.claim`. Claims that arrive while the store is busy are sent together. Raises
        StoreUnavailableError."""
        if len(self._claims) >= _MAX_CLAIMS:
            raise _too_many(len(self._claims))
        claim: asyncio.Future[Claim] = asyncio.get_running_loop().create_future()
        self._claims.append((record_id, claim))
        if self._claiming is None or self._claiming.done():
            self._claiming = asyncio.create_task(self._claim_all())
        return await claim

    async def claim_again(self, record_id: str) -> Claim:
        """As `claim`, but at once, for a record that stays owned when the answer is lost."""
        (claim,) = await self.call(self._store.claim, [record_id])
        return claim

    async def _claim_all(self) -> None:
        while self._claims:
            batch, self._claims = self._claims[:_CLAIMS], self._claims[_CLAIMS:]
            record_ids = list(dict.fromkeys(record_id for record_id, _ in batch))
            take = partial(self._store.claim, record_ids)
            try:
                found = await self.call(self._take, record_ids, take)
            except StoreUnavailableError as error:
                for _, claim in batch:
                    if not claim.done():
                        claim.set_exception(error)
                continue
            claims = dict(zip(record_ids, found, strict=True))
            for record_id, claim in batch:
                if not claim.done():
                    claim.set_result(claims[record_id])

    def _take(self, record_ids: Sequence[str], take: Callable[[], T]) -> T:
        self._undo_claims(self.maybe_taken.intersection(record_ids))
        try:
            return take()
        except CorruptRecordError:
            raise
        except StoreError:
            self.maybe_taken.update(record_ids)
            raise

    async def beat(self) -> Beat:
        """Sends a heartbeat on its own thread, so that it waits for nothing else. Raises StoreUnavailableError."""
        try:
            beat = await asyncio.get_running_loop().run_in_executor(self._heart, self._store.heartbeat)
        except Exception as error:
            self.fails(error, "heartbeat")
            raise _unavailable() from error
        self.works("heartbeat", "read")
        return beat

    async def undo_claims(self) -> None:
        """Releases records that may be owned: see rule 3. Raises StoreUnavailableError."""
        if self.maybe_taken:
            await self.call(lambda: self._undo_claims(list(self.maybe_taken)), operation="upkeep")

    async def sweep(self, limit: int) -> int:
        """See `StateStore.sweep`. Raises StoreUnavailableError."""
        return await self.call(self._store.sweep, limit, operation="upkeep")

    async def look_for_risk(self) -> None:
        """Reports a risk from the store's settings, once for each change. Raises StoreUnavailableError."""
        risk = await self.call(self._store.risk, operation="upkeep")
        if risk != self._risk:
            self._risk = risk
            self._observer.store_at_risk(risk)

    async def probe(self) -> None:
        """Writes and deletes a record of its own, when writes count as failing but have not failed for some time.
        Raises StoreUnavailableError."""
        if "write" in self._failing and self._clock() >= self._write_failed_at_s + self._recovery_s:
            await self.call(self._probe, operation="write")

    def _probe(self) -> None:
        name = f"{NO_ID}probe~{self._store.owner}"
        self._store.reserve(name, _PROBE_TTL_S)
        self._store.undo_claim(name)

    async def close(self) -> None:
        """Closes the store after any heartbeat in progress, which would make this process count as alive again. Make no
        further calls."""
        if self._claiming is not None:
            self._claiming.cancel()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._heart, lambda: None)
        with suppress(StoreError):
            await loop.run_in_executor(self.executor, self._store.close)
        self.executor.shutdown(wait=False)
        self._heart.shutdown(wait=False)

    def _undo_claims(self, record_ids: Iterable[str]) -> None:
        for record_id in record_ids:
            self._store.undo_claim(record_id)
            self.maybe_taken.discard(record_id)

    def _check_available(self) -> None:
        """Raises when the store fails, or when too many calls wait for it."""
        now_s = self._clock()
        if "read" in self._failing and (now_s < self._tries_at_s or self._num_calls):
            raise _unavailable()
        if self._num_calls >= _MAX_CALLS:
            raise _too_many(self._num_calls)
        self._tries_at_s = now_s + _RETRY_S

    def write(self, writes: Sequence[Write]) -> Written:
        """Runs on the executor: see `StateStore.write`."""
        try:
            return self._store.write(writes)
        except StoreError:
            self._failed_at_s = self._clock()
            raise

    def fails(self, error: Exception, operation: str) -> None:
        """Records a failure of the store."""
        self._tries_at_s = self._clock() + _RETRY_S
        if operation == "write":
            now_s = self._clock()
            since_s = now_s - self._write_failed_at_s
            if since_s > 2 * _MAX_RECOVERY_S:
                self._recovery_s = _RECOVERY_S
            elif "write" not in self._failing or since_s >= self._recovery_s:  # writes had succeeded for some time
                self._recovery_s = min(2 * self._recovery_s, _MAX_RECOVERY_S)
            self._write_failed_at_s = now_s
        was_failing = self.is_failing
        self._failing.add(operation)
        self._observer.operation_failed(operation)
        if not was_failing:
            self._observer.store_failed(error)

    def works(self, *operations: str) -> None:
        """Records a success of the store."""
        if self._failing:
            has_recovered = self._clock() >= self._write_failed_at_s + self._recovery_s
            self._failing.difference_update(one for one in operations if one != "write" or has_recovered)
            if not self._failing:
                self._observer.store_recovered()


def _unavailable() -> StoreUnavailableError:
    return StoreUnavailableError("the session store does not answer: try again later", retry_delay_s=1.0)


def _too_many(count: int) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"{count} requests already wait for the session store, the limit: try again later", retry_delay_s=0.5
    )
