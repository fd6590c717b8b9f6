"""The answers that are kept for retries of feeds and step batches, and the bound on what they take of the memory.

Small answers are bounded by the number of sessions. Large ones are kept, the latest first, up to a number of bytes;
of those beyond it the positions alone are kept, so that a retry is still not applied twice. Event loop only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol
from weakref import ref

from service.engine.results import StepOutput

_LARGE = 16 * 1024
"""Bytes from which an answer is counted."""


class Kept(Protocol):
    """What keeps an answer. It can be referred to weakly."""

    def drop(self) -> None:
        """Forgets the answer, but for its positions."""


class Replays:
    """Counts the answers of all sessions, for as long as anything keeps them. max_bytes: of the large ones."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[ref[Kept], int] = OrderedDict()
        self.num_bytes = 0

    def keep(self, answer: Kept, num_bytes: int) -> None:
        """Counts an answer, and drops the oldest that are too many."""
        if num_bytes < _LARGE:
            return
        self._kept[ref(answer, self._forget)] = num_bytes
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            there = next(iter(self._kept))
            oldest = there()
            self._forget(there)
            if oldest is not None:
                oldest.drop()

    def _forget(self, there: ref[Kept]) -> None:
        self.num_bytes -= self._kept.pop(there, 0)


def size_of(outputs: Iterable[StepOutput]) -> int:
    """About the bytes that the outputs of a feed take."""
    total = 0
    for output in outputs:
        total += 120 + 40 * len(output.token_ids)
        if output.logits is not None:
            total += output.logits.nbytes
        if output.trace is not None:
            total += sum(values.nbytes for values in output.trace.values())
    return total
