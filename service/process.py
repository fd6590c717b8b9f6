"""The process that serves: its event loop, uvloop's where the platform has it, and what its signals do.

SIGTERM and SIGINT end the server, SIGHUP makes it read its files again. The first SIGTERM or SIGINT ends it in good
order. From then on either signal has its own effect again, which ends the process at once, whatever the event loop is
busy with. As the first process of a container it has none: a handler does the same there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

if sys.platform == "win32":
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    from uvloop import new_event_loop

T = TypeVar("T")


class StartError(Exception):
    """The server cannot start; the message says why."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, for a process that serves. Raises what `main` raises."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


log = structlog.get_logger()

_LEAVING = (signal.SIGTERM, signal.SIGINT)


def handle_signals(on_leave: Callable[[], None], on_reload: Callable[[], None]) -> None:
    """Handles the signals from here on, by calls on the running event loop. on_leave: called once. Main thread only."""
    loop = asyncio.get_running_loop()

    def leave(number: signal.Signals) -> None:
        for one in _LEAVING:
            loop.remove_signal_handler(one)
            signal.signal(one, signal.SIG_DFL if os.getpid() != 1 else _end)
        log.info("server.leaving", signal=number.name, hint="a second signal ends it at once")
        on_leave()

    for one in _LEAVING:
        loop.add_signal_handler(one, leave, one)
    loop.add_signal_handler(signal.SIGHUP, on_reload)


def _end(number: int, _: Any) -> None:
    os._exit(128 + number)
