"""When Python's cyclic garbage collector looks at the whole heap: at quiet moments, and not in the middle of a step.

A full collection goes through every object, and stops every stream meanwhile: with 64 streams the slowest thousandth of
steps took 12 to 16 times the median, nearly all of it full collections. Rules:

1. What exists when the server has started, models and code, is never looked at again (`gc.freeze`).
2. Young objects are collected as ever, in fractions of a millisecond. Full collections happen here alone.
3. They wait for a moment in which no batch runs, but no longer than `max_wait_s`: cycles do not pile up.
4. They take at most a hundredth of the time.

Event loop only.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

_YOUNG = 5_000
"""Objects made, less those that went, between two collections of young ones."""
_MIDDLE = 20
"""Young collections between two of the middle generation."""
_NEVER = 1_000_000_000
_WORTH = 5
"""Collections of the middle generation after which a full one is worth its time."""
_QUIET_S = 0.02
_SHARE = 100


class Collector:
    """Takes full collections over from Python. num_batches: a count that grows with each batch; clock: monotonic
    seconds; collect: collects everything."""

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

    def want(self) -> None:
        """Something large has become garbage: a full collection is worth its time."""
        self._is_wanted = True

    @staticmethod
    def take_over() -> None:
        """Freezes what exists, and leaves full collections to `look`. Of the whole process."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)

    async def look(self) -> None:
        """Collects everything, if it is worth it and the moment is quiet. To be called again and again."""
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
