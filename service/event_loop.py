"""The event loop that the server runs on: uvloop's, where the platform has it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

if sys.platform == "win32":
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    from uvloop import new_event_loop

T = TypeVar("T")

_SWITCH_INTERVAL_S = 0.00005


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, for a process that serves. Raises what `main` raises."""
    # An engine's thread that comes back from a run waits for the event loop to give up the GIL, by default for 5 ms,
    # many times a batch.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
