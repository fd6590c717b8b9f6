"""Waits for an effect that nothing announces, such as that of another process or thread.

A test that can await a future, an event or a message does that instead.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

_FIRST_S, _LONGEST_S = 0.001, 0.02
"""The shortest and the longest pause between two looks. Each pause is twice as long as the one before."""

T = TypeVar("T")


def wait_until(holds: Callable[[], T], timeout_s: float = 20.0) -> T:
    """Calls `holds` until it returns something true, at least every 20 ms, and returns that. Blocks meanwhile. Raises
    AssertionError after `timeout_s`."""
    deadline_s, pause_s = time.monotonic() + timeout_s, _FIRST_S
    while not (found := holds()):
        assert time.monotonic() < deadline_s, "it never came to hold"
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_S)
    return found


@overload
async def until(holds: Callable[[], Awaitable[T]], timeout_s: float = 20.0) -> T: ...
@overload
async def until(holds: Callable[[], T], timeout_s: float = 20.0) -> T: ...
async def until(holds: Callable[[], object], timeout_s: float = 20.0) -> object:
    """As `wait_until`, without blocking the event loop. `holds` may be a coroutine function."""
    deadline_s, pause_s = time.monotonic() + timeout_s, _FIRST_S
    while True:
        found = holds()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline_s, "it never came to hold"
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_S)


async def turns(num_turns: int = 1) -> None:
    """Returns after some turns of the event loop, so that the tasks and callbacks that are ready have run."""
    for _ in range(num_turns):
        await asyncio.sleep(0)
