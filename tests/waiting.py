"""Waits for an effect that nothing announces, such as that of another process or thread.

A test that can await a future, an event or a message does that instead.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar, overload

T = TypeVar("T")


def wait_until(holds: Callable[[], T | None], timeout_s: float = 20.0) -> T:
    """Calls `holds` until it returns something true, at least every 20 ms, and returns that. Blocks meanwhile. Raises
    AssertionError after `timeout_s`."""
    pauses_s = _pauses_s(timeout_s)
    while not (found := holds()):
        time.sleep(next(pauses_s))
    return found


@overload
async def until(holds: Callable[[], Awaitable[T | None]], timeout_s: float = 20.0) -> T: ...
@overload
async def until(holds: Callable[[], T | None], timeout_s: float = 20.0) -> T: ...
async def until(holds: Callable[[], object], timeout_s: float = 20.0) -> object:
    """As `wait_until`, without blocking the event loop. `holds` may be a coroutine function."""
    pauses_s = _pauses_s(timeout_s)
    while True:
        found = holds()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(next(pauses_s))


async def turns(num_turns: int = 1) -> None:
    """Returns after some turns of the event loop, so that the tasks and callbacks that are ready have run."""
    for _ in range(num_turns):
        await asyncio.sleep(0)


def _pauses_s(timeout_s: float) -> Iterator[float]:
    """Yields the pause before each next look: a tenth of the time waited so far, and between 1 and 20 ms."""
    began_s = time.monotonic()
    while True:
        waited_s = time.monotonic() - began_s
        assert waited_s < timeout_s, "it never came to hold"
        yield min(max(0.001, waited_s / 10), 0.02)
