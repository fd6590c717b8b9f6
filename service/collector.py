"""Decides when Python's cyclic garbage collector makes a full collection: at quiet moments, not during a step.

A full collection visits every object and stops every stream meanwhile. With 64 streams, the slowest thousandth of steps
took 12 to 16 times the median, nearly all of it full collections. Rules:

1. Objects that exist when the server has started, such as models and code, are never collected (`gc.freeze`).
2. Python collects young objects as usual, which takes fractions of a millisecond. Full collections happen only here.
3. A full collection waits for a moment in which no batch runs, but not longer than `max_wait_s`, so that garbage in
   cycles does not pile up.
4. Full collections take at most a hundredth of the time.

Event loop only.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

_YOUNG = 5_000
"""Objects created minus objects freed, between two collections of the young generation."""
_MIDDLE = 20
"""Collections of the young generation between two collections of the middle generation."""
_NEVER = 1_000_000_000
_WORTH = 5
"""Number of collections of the middle generation after which a full collection is due."""
_QUIET_S = 0.02
_SHARE = 100


class Collector:
    """Makes the full collections instead of Python. num_batches: returns a count that grows with each batch; clock:
    monotonic seconds; collect: makes a full collection; num_due: returns how many
    collections of the middle generation there were since the last full one."""

    def __init__(
        self,
        num_batches: Callable[[], int],
        *,
        max_wait_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        collect: Callable[[], object] = gc.collect,
        num_due: Callable[[], int] = lambda: gc.get_count()[2],
    ) -> None:
        self._num_batches = num_batches
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._collect = collect
        self._num_due = num_due
        self._collected_at_s = clock()
        self._took_s = 0.0
        self._is_wanted = False

    def request(self) -> None:
        """Makes a full collection due, because something large has become garbage."""
        self._is_wanted = True

    @staticmethod
    def take_over() -> None:
        """Freezes all existing objects and turns off Python's own full collections, in the whole process."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)

    async def collect_if_due(self) -> None:
        """Makes a full collection if one is due and the moment is quiet. Call it repeatedly."""
        waited_s = self._clock() - self._collected_at_s
        is_worth_it = self._is_wanted or self._num_due() >= _WORTH
        if not is_worth_it or waited_s < _SHARE * self._took_s:
            return
        before = self._num_batches()
        await asyncio.sleep(_QUIET_S)
        if self._num_batches() != before and waited_s < self._max_wait_s:
            return
        self._is_wanted = False
        began_s = self._clock()
        self._collect()
        self._collected_at_s = self._clock()
        self._took_s = self._collected_at_s - began_s
