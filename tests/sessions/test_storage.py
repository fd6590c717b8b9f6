"""The store's thread: order, limits, and failures that do not stop it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.errors import StoreUnavailableError
from service.sessions.image import Image
from service.sessions.snapshot import Codec
from service.sessions.storage import Put, Storage, WriteResult
from service.sessions.stores.base import Beat, Claim, Claimed, Gone, Ownership, StoreError, Write, Written
from service.sessions.stores.memory import MemoryStore, SharedRecords
from tests.sessions.test_registry import Events
from tests.sessions.test_snapshot_format import images
from tests.waiting import turns, until

LATER = 1000.0


class Clock:
    """A monotonic clock that the test moves. Each reading is a little later than the one before."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 1e-6
        return self.now_s


class SlowStore(MemoryStore):
    """A store that a test can block or let fail."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.is_down = False
        self.num_tries = 0
        self.batches: list[list[str]] = []

    def write(self, writes: Sequence[Write]) -> Written:
        self._pass()
        self.batches.append([write.session_id for write in writes])
        return super().write(writes)

    def claim(self, session_ids: Sequence[str]) -> list[Claim]:
        self._pass()
        return super().claim(session_ids)

    def heartbeat(self) -> Beat:
        self._pass()
        return super().heartbeat()

    def _pass(self) -> None:
        self.num_tries += 1
        self.gate.wait(10)
        if self.is_down:
            raise StoreError("down")


@asynccontextmanager
async def storage_of(
    store: SlowStore, codec: Codec | None = None, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[Storage]:
    storage = Storage(store, codec or Codec(b"a key of sixteen"), Events(), heartbeat_s=1000.0, clock=clock)
    storage.start(lambda session_id: None)
    await until(lambda: store.num_tries)  # its first heartbeat runs on a thread
    try:
        yield storage
    finally:
        store.gate.set()
        store.is_down = False
        await storage.stop(1.0)


def gone(record_id: str) -> Put:
    return Put(record_id, 1, None, LATER, Ownership.GONE, b"how")


async def put(storage: Storage, one: Put) -> WriteResult:
    done: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
    storage.put(one, done.set_result)
    return await done


async def test_a_claim_waits_for_the_writes_of_its_own_record_alone() -> None:
    store = SlowStore()
    async with storage_of(store) as storage:
        store.gate.clear()
        results: list[WriteResult] = []
        storage.put(Put("a", 1, images()["fed"], LATER), results.append)
        await until(lambda: store.num_tries == 2)  # now the store's thread is busy with this write
        storage.put(Put("b", 1, images()["fed"], LATER), results.append)
        claim = asyncio.ensure_future(storage.claim("a"))
        await turns(3)
        assert not claim.done()
        store.gate.set()
        claimed = await claim
        assert isinstance(claimed, Claimed)
        assert claimed.payload is not None
        await storage.drained()
        assert results == [WriteResult.STORED, WriteResult.STORED]


@pytest.mark.parametrize("waits", [True, False])
async def test_writes_after_the_end_of_a_session_are_refused(waits: bool) -> None:
    """It is not merged into the ending record either, while that record waits to be written: a tombstone is not a state
    that can be claimed."""
    store = SlowStore()
    async with storage_of(store) as storage:
        store.gate.clear()
        storage.put(gone("before"), lambda result: None)
        await until(lambda: store.num_tries == 2)  # now the store's thread is busy with this write
        ended = asyncio.ensure_future(put(storage, gone("a")))
        await turns()
        if not waits:
            store.gate.set()
            await ended
        late = asyncio.ensure_future(put(storage, Put("a", 1, None, LATER, Ownership.FREE)))
        await turns()
        store.gate.set()
        assert (await ended, await late) == (WriteResult.STORED, WriteResult.REFUSED)
        assert await storage.claim("a") == Gone(b"how")


async def test_a_callback_that_raises_costs_no_other_its_result() -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    async with storage_of(SlowStore()) as storage:

        def wrong(result: WriteResult) -> None:
            raise ValueError("a bug")

        storage.put(gone("a"), wrong)
        assert await put(storage, gone("b")) is WriteResult.STORED
        assert await put(storage, gone("c")) is WriteResult.STORED
    assert [str(problem["exception"]) for problem in problems] == ["a bug"]


@pytest.mark.parametrize("name", ["records_written", "operation_failed", "store_failed", "store_recovered"])
async def test_an_observer_that_raises_costs_no_write_its_result(name: str) -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    store, clock = SlowStore(), Clock()
    async with storage_of(store, clock=clock) as storage:

        def wrong(*facts: object) -> None:
            raise ValueError("a bug of an observer")

        setattr(storage.observer, name, wrong)
        store.is_down = True
        assert await put(storage, gone("a")) is WriteResult.FAILED
        store.is_down = False
        assert await put(storage, gone("a")) is WriteResult.STORED
        clock.now_s += 1.0  # the store counts as recovered only after writes have succeeded for a second
        assert await storage.claim("a") == Gone(b"how")
        assert await put(storage, gone("b")) is WriteResult.STORED
    assert {str(problem["exception"]) for problem in problems} == {"a bug of an observer"}


async def test_an_image_that_cannot_be_encoded_fails_alone() -> None:
    class WrongCodec(Codec):
        def encode(self, image: Image) -> bytes:
            raise ValueError("not this one")

    async with storage_of(SlowStore(), WrongCodec(b"a key of sixteen")) as storage:
        wrong: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
        storage.put(Put("a", 1, images()["fed"], LATER), wrong.set_result)
        right = await put(storage, gone("b"))
        assert (await wrong, right) == (WriteResult.FAILED, WriteResult.STORED)


async def test_while_the_store_fails_reads_are_refused_at_once() -> None:
    store, clock = SlowStore(), Clock()
    async with storage_of(store, clock=clock) as storage:
        store.is_down = True
        with pytest.raises(StoreUnavailableError):
            await storage.claim("a")
        assert storage.is_failing
        store.gate.clear()  # a call that reaches the store would hang
        began_s = time.monotonic()
        for _ in range(100):
            with pytest.raises(StoreUnavailableError, match="does not answer"):
                await storage.claim("a")
        assert time.monotonic() - began_s < 5.0
        store.gate.set()
        store.is_down = False
        clock.now_s += 0.5
        assert await storage.claim("a") is None
        assert not storage.is_failing


async def test_no_more_than_a_number_of_reads_wait_for_the_store() -> None:
    store = SlowStore()
    async with storage_of(store) as storage:
        store.gate.clear()
        waiting = [asyncio.ensure_future(storage.claim(f"s{number}")) for number in range(4096)]
        await turns()
        with pytest.raises(StoreUnavailableError, match="4096 requests already wait for the session store"):
            await storage.claim("one more")
        store.gate.set()
        assert await asyncio.gather(*waiting) == [None] * 4096
        assert store.num_tries <= 20, "claims go to the store together"
        store.gate.clear()
        looking = [asyncio.ensure_future(storage.has(f"s{number}")) for number in range(512)]
        await turns()
        with pytest.raises(StoreUnavailableError, match="512 requests already wait for the session store"):
            await storage.has("one more")
        store.gate.set()
        assert await asyncio.gather(*looking) == [False] * 512


async def test_a_batch_of_writes_is_bounded_by_its_bytes() -> None:
    class Huge(Image):
        @property
        def num_bytes(self) -> int:
            return 20 * 1024 * 1024

    fed = images()["fed"]
    huge = Huge(**{name: getattr(fed, name) for name in Image.__dataclass_fields__})
    store = SlowStore()
    async with storage_of(store) as storage:
        for number in range(5):
            storage.put(Put(f"s{number}", 1, huge, LATER), lambda result: None)
        await storage.drained()
        assert [len(batch) for batch in store.batches] == [2, 2, 1]


async def test_calls_that_waited_when_the_store_failed_fail_with_it() -> None:
    """Otherwise each would wait for its own timeout, one after another."""
    store = SlowStore()
    async with storage_of(store) as storage:
        store.gate.clear()
        claims = [asyncio.ensure_future(storage.claim(f"s{number}")) for number in range(20)]
        await until(lambda: store.num_tries == 2)  # now the store's thread is busy with a claim
        store.is_down, store.num_tries = True, 0
        store.gate.set()
        results = await asyncio.gather(*claims, return_exceptions=True)
        assert all(isinstance(result, StoreUnavailableError) for result in results)
        assert store.num_tries == 0, "the first was under way; no other reached the store"


async def test_a_record_that_a_failed_claim_may_have_taken_is_released() -> None:
    store, other = LateStore(shared := SharedRecords()), MemoryStore(shared)
    storage = Storage(store, Codec(b"a key of sixteen"), Events(), heartbeat_s=0.01)
    with pytest.raises(StoreUnavailableError):
        await storage.reserve("new", LATER)
    assert other.reserve("new", LATER) is None
    storage.start(lambda session_id: None)
    try:
        await until(lambda: other.reserve("new", LATER))
    finally:
        await storage.stop(1.0)


async def test_a_record_that_a_failed_claim_may_have_taken_is_released_before_the_next_claim() -> None:
    storage = Storage(
        LateStore(SharedRecords()), Codec(b"a key of sixteen"), Events(), clock=iter(range(10**6)).__next__
    )
    with pytest.raises(StoreUnavailableError):
        await storage.reserve("new", LATER)
    assert await storage.reserve("new", LATER) is not None
    await storage.stop(1.0)


class LateStore(MemoryStore):
    """A store that carries out the first reservation, but does not answer it in time."""

    num_reserved = 0

    def reserve(self, session_id: str, ttl_s: float) -> int | None:
        epoch = super().reserve(session_id, ttl_s)
        self.num_reserved += 1
        if self.num_reserved == 1:
            raise StoreError("too late")
        return epoch
