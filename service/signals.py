"""What the process's signals do: SIGTERM and SIGINT end the server, SIGHUP makes it read its files again.

The first SIGTERM or SIGINT ends it in good order. From then on either signal has its own effect again, which ends the
process at once, whatever the event loop is busy with.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import structlog

log = structlog.get_logger()

_LEAVING = (signal.SIGTERM, signal.SIGINT)


def handle_signals(on_leave: Callable[[], None], on_reload: Callable[[], None]) -> None:
    """Handles the signals from here on, by calls on the running event loop. on_leave: called once. Main thread only."""
    loop = asyncio.get_running_loop()

    def leave(number: signal.Signals) -> None:
        for one in _LEAVING:
            loop.remove_signal_handler(one)
            signal.signal(one, signal.SIG_DFL)
        log.info("server.leaving", signal=number.name, hint="a second signal ends it at once")
        on_leave()

    for one in _LEAVING:
        loop.add_signal_handler(one, leave, one)
    loop.add_signal_handler(signal.SIGHUP, on_reload)
