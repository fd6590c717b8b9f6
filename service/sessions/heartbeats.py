"""The repeated tasks of a store: heartbeats, which wait for nothing else, and upkeep.

Event loop only.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress

from service.errors import StoreUnavailableError, guarded
from service.sessions.store_thread import StoreThread
from service.sessions.stores.base import Beat

_SWEEP = 1000
"""The limit of expired records removed in one call."""
_SWEEP_S = 1.0
"""Seconds between two searches for expired records."""
_RISK_S = 10.0
"""Seconds between two checks of the store's settings."""


class Heartbeats:
    """Runs the repeated tasks. interval_s: seconds between two heartbeats. clock: monotonic seconds."""

    def __init__(self, thread: StoreThread, interval_s: float, clock: Callable[[], float]) -> None:
        self._thread = thread
        self._interval_s = interval_s
        self._clock = clock
        self._is_due = asyncio.Event()
        self._risk_at_s = -math.inf

    def start(
        self,
        on_wanted: Callable[[str], None],
        on_beat: Callable[[float, Beat], None],
        on_missed: Callable[[], None],
    ) -> list[asyncio.Task[None]]:
        """Starts both tasks. Returns them; the caller cancels them. See `Storage.start`."""

        async def beat() -> None:
            sent_s = self._clock()
            try:
                heard = await self._thread.beat()
            except StoreUnavailableError:  # already reported; retried
                on_missed()
            else:
                on_beat(sent_s, heard)
                for session_id in heard.wanted:
                    guarded(on_wanted, session_id)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._is_due.wait()
            self._is_due.clear()

        return [
            asyncio.create_task(_for_ever(beat, self._interval_s)),
            asyncio.create_task(_for_ever(self._maintain, self._interval_s)),
        ]

    def hasten(self) -> None:
        """Sends a heartbeat at once."""
        self._is_due.set()

    async def _maintain(self) -> None:
        """One round of upkeep: releases records that may be owned, probes writes, removes all expired records, and
        sometimes checks the store's settings."""
        if self._clock() >= self._risk_at_s:
            self._risk_at_s = self._clock() + _RISK_S
            await self._thread.look_for_risk()
        sweep_at_s = self._clock() + _SWEEP_S
        while self._clock() < sweep_at_s:
            await asyncio.sleep(self._interval_s)
            await self._thread.undo_claims()
            await self._thread.probe()
        count = _SWEEP
        while count == _SWEEP:
            count = await self._thread.sweep(_SWEEP)


async def _for_ever(act: Callable[[], Awaitable[None]], pause_s: float) -> None:
    """Repeats `act` for ever, also when it raises."""
    while True:
        try:
            await act()
        except StoreUnavailableError:  # already reported; retried
            await asyncio.sleep(pause_s)
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a repeated task of the session store failed", "exception": error}
            )
            await asyncio.sleep(pause_s)
