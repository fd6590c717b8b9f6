"""The process that serves: its event loop (uvloop where the platform has it) and its signal handlers.

SIGTERM and SIGINT end the server; SIGHUP makes it read its files again. The first SIGTERM or SIGINT ends the server
gracefully. After it, both signals have their default action again, which ends the process at once even if the event
loop is busy. The first process of a container has no default action, so a handler ends it.
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
    """The server cannot start. The message says why."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` like `asyncio.run`, on the event loop for serving. Raises what `main` raises."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


log = structlog.get_logger()

_LEAVING = (signal.SIGTERM, signal.SIGINT)


def handle_signals(on_leave: Callable[[], None], on_reload: Callable[[], None]) -> None:
    """Handles the signals from here on, by calls on the running event loop. on_leave is called only once. Main thread
    only."""
    loop = asyncio.get_running_loop()

    def leave(number: signal.Signals) -> None:
        for one in _LEAVING:
            loop.remove_signal_handler(one)
            signal.signal(one, signal.SIG_DFL if os.getpid() != 1 else _end)
        log.info("server.leaving", signal=number.name, hint="a second signal ends the server at once")
        on_leave()

    for one in _LEAVING:
        loop.add_signal_handler(one, leave, one)
    loop.add_signal_handler(signal.SIGHUP, on_reload)


def _end(number: int, _: Any) -> None:
    os._exit(128 + number)
