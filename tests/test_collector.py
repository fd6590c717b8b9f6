"""Full garbage collections wait for quiet moments, but not forever, and take a bounded part of the time."""

from __future__ import annotations

from service.collector import Collector


class Process:
    """A process whose clock, batches and garbage the test controls."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_batches = 0
        self.is_busy = False
        self.num_due = 100
        self.num_collections = 0
        self.took_s = 0.0
        self.collector = Collector(
            self._count, max_wait_s=60.0, clock=lambda: self.now_s, collect=self._collect, num_due=lambda: self.num_due
        )

    def _count(self) -> int:
        self.num_batches += self.is_busy
        return self.num_batches

    def _collect(self) -> None:
        self.num_collections += 1
        self.now_s += self.took_s

    async def after(self, seconds: float) -> int:
        self.now_s += seconds
        await self.collector.collect_if_due()
        return self.num_collections


async def test_a_quiet_process_is_collected_when_it_is_worth_it() -> None:
    process = Process()
    process.num_due = 1
    assert await process.after(1.0) == 0
    process.num_due = 100
    assert await process.after(1.0) == 1


async def test_a_requested_collection_runs_once_at_the_next_quiet_moment() -> None:
    process = Process()
    process.num_due = 1
    process.collector.request()
    process.is_busy = True
    assert await process.after(1.0) == 0
    process.is_busy = False
    assert [await process.after(1.0) for _ in range(2)] == [1, 1]


async def test_a_busy_process_is_collected_after_the_longest_wait() -> None:
    process = Process()
    process.is_busy = True
    assert await process.after(30.0) == 0
    assert await process.after(31.0) == 1


async def test_collections_take_a_hundredth_of_the_time_at_most() -> None:
    process = Process()
    process.took_s = 0.5
    assert await process.after(1.0) == 1
    assert await process.after(40.0) == 1
    assert await process.after(11.0) == 2
