"""The loop: time is virtual, executors keep their order, and after a simulated process ends, its tasks do nothing
more."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from simulation.loop import Life, SimulatedLoop, Stalled, delays


@pytest.fixture
def loop() -> Iterator[SimulatedLoop]:
    made = SimulatedLoop(delays(random.Random(1), 0.01))
    yield made
    made.close()


def run(loop: SimulatedLoop, work: Coroutine[Any, Any, Any]) -> Any:
    return loop.run_until_complete(work)


def test_an_hour_takes_no_time(loop: SimulatedLoop) -> None:
    began, virtual = time.monotonic(), loop.time()
    run(loop, asyncio.sleep(3600.0))
    assert loop.time() - virtual == pytest.approx(3600.0)
    assert time.monotonic() - began < 5.0


def test_calls_of_one_executor_run_in_order_and_on_this_thread(loop: SimulatedLoop) -> None:
    executor = ThreadPoolExecutor(1)
    ran: list[int] = []

    async def act() -> list[int]:
        def note(number: int) -> int:
            ran.append(number)
            return number

        calls = [loop.run_in_executor(executor, note, number) for number in range(20)]
        assert not ran, "nothing runs before its time"
        return list(await asyncio.gather(*calls))

    assert run(loop, act()) == list(range(20))
    assert ran == list(range(20))
    executor.shutdown()


def test_threads_of_the_default_executor_overtake_each_other(loop: SimulatedLoop) -> None:
    ran: list[int] = []

    async def act() -> None:
        await asyncio.gather(*(asyncio.to_thread(ran.append, n) for n in range(20)))

    run(loop, act())
    assert sorted(ran) == list(range(20))
    assert ran != list(range(20))


def test_what_an_executor_raises_is_raised(loop: SimulatedLoop) -> None:
    async def act() -> None:
        await asyncio.to_thread(int, "x")

    with pytest.raises(ValueError, match="invalid literal"):
        run(loop, act())


def test_a_loop_with_nothing_to_wait_for_stands_still(loop: SimulatedLoop) -> None:
    async def act() -> None:
        await loop.create_future()

    with pytest.raises(Stalled, match="nothing is ready"):
        run(loop, act())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    run(loop, asyncio.sleep(0))


def test_a_task_that_never_waits_stands_still(loop: SimulatedLoop) -> None:
    async def act() -> None:
        while True:  # noqa: ASYNC110  # a busy loop is what this test needs
            await asyncio.sleep(0)

    with pytest.raises(Stalled, match="at one time"):
        run(loop, act())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    run(loop, asyncio.sleep(0))


def test_a_life_that_ends_does_nothing_more(loop: SimulatedLoop) -> None:
    done: list[str] = []

    async def live() -> None:
        asyncio.get_running_loop().call_later(0.5, done.append, "timer")
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 0)
        try:
            await asyncio.sleep(1.0)
            done.append("task")
        finally:
            asyncio.get_running_loop().call_later(0.1, done.append, "afterthought")

    async def act() -> None:
        life = Life("A")
        task = life.start(live())
        await asyncio.sleep(0.1)
        life.end()
        await asyncio.sleep(2.0)
        assert task.cancelled()
        assert not life.tasks

    run(loop, act())
    assert done == []
