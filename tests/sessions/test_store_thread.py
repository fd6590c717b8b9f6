"""When a store counts as failing, and when as working again."""

from __future__ import annotations

from typing import Any, cast

from service.sessions.store_thread import StoreThread
from service.sessions.stores.base import StoreError
from service.sessions.stores.memory import MemoryStore


class Heard:
    """Counts the failures and recoveries that are reported to the observer."""

    def __init__(self) -> None:
        self.num_failures = self.num_recoveries = 0

    def operation_failed(self, operation: str) -> None:
        pass

    def store_failed(self, error: BaseException) -> None:
        self.num_failures += 1

    def store_recovered(self) -> None:
        self.num_recoveries += 1


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def made() -> tuple[StoreThread, MemoryStore, Heard, Clock]:
    store, heard, clock = MemoryStore(), Heard(), Clock()
    return StoreThread(store, cast(Any, heard), clock), store, heard, clock


async def test_a_store_whose_writes_fail_now_and_then_does_not_flap() -> None:
    """For example on a full disk, where some records still fit."""
    thread, _, heard, clock = made()
    for _ in range(80):
        clock.now_s += 0.05
        thread.fails(StoreError("the disk is full"), "write")
        clock.now_s += 0.05
        thread.works("write")
        thread.works("upkeep")
        thread.works("heartbeat", "read")
    assert (heard.num_failures, heard.num_recoveries) == (1, 0)
    assert thread.is_failing
    clock.now_s += 10.0
    thread.works("upkeep")
    assert thread.is_failing, "it wrote nothing"
    thread.works("write")
    assert not thread.is_failing
    assert heard.num_recoveries == 1
    await thread.close()


async def test_a_store_that_nothing_is_written_to_is_probed_by_writing() -> None:
    thread, store, heard, clock = made()
    thread.fails(StoreError("the disk is full"), "write")
    await thread.probe()
    assert thread.is_failing, "not at once"
    clock.now_s += 10.0
    await thread.probe()
    assert heard.num_recoveries == 1
    assert not store.has(f"~probe~{store.owner}")
    await thread.close()


async def test_writes_that_fail_again_must_succeed_for_longer() -> None:
    thread, _, heard, clock = made()
    for wait_s in (1.0, 2.0, 4.0, 8.0, 10.0, 10.0):
        thread.fails(StoreError("the disk is full"), "write")
        clock.now_s += wait_s - 0.1
        thread.works("write")
        assert thread.is_failing
        clock.now_s += 0.1
        thread.works("write")
        assert not thread.is_failing
    assert heard.num_failures == heard.num_recoveries == 6
    await thread.close()
