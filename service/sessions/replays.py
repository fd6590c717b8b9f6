"""The answers that are kept for retries of feeds, and the bound on what they take of the memory.

Small answers are bounded by the number of sessions. Large ones are kept, the latest first, up to a number of bytes;
of those beyond it the position alone is kept, so that a retry is still not applied twice. Event loop only.
"""

from __future__ import annotations

from collections import OrderedDict
from weakref import ref

from service.engine.results import Fed, Result
from service.sessions.session import LastFeed

_LARGE = 16 * 1024
"""Bytes from which an answer is counted."""


class Replays:
    """Counts the answers of all sessions, for as long as anything keeps them. max_bytes: of the large ones."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[ref[LastFeed], int] = OrderedDict()
        self.num_bytes = 0

    def keep(self, feed: LastFeed) -> None:
        """Counts the answer of a feed, and drops the oldest that are too many."""
        num_bytes = size_of(feed.result)
        if num_bytes < _LARGE:
            return
        self._kept[ref(feed, self._forget)] = num_bytes
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            there = next(iter(self._kept))
            oldest = there()
            self._forget(there)
            if oldest is not None and isinstance(oldest.result, Fed):
                oldest.result = Fed(oldest.result.position, [])
                oldest.is_dropped = True

    def _forget(self, there: ref[LastFeed]) -> None:
        self.num_bytes -= self._kept.pop(there, 0)


def size_of(result: Result | None) -> int:
    """About the bytes that an answer to a feed takes."""
    if not isinstance(result, Fed):
        return 0
    total = 0
    for output in result.outputs:
        total += 120 + 40 * len(output.token_ids)
        if output.logits is not None:
            total += output.logits.nbytes
        if output.trace is not None:
            total += sum(values.nbytes for values in output.trace.values())
    return total
