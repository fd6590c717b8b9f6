"""The memory that requests and answers take: large ones until they are written, and those that are kept for retries.

A large answer is counted by the most bytes that it may have, from when its request is accepted until it is written, or
the request has failed, and with it what a large feed or score holds itself. Small ones are not counted: their number is
bounded.

Of the answers that are kept for retries of feeds and step batches small ones are bounded by the number of sessions.
Large ones are kept, the latest first, up to a number of bytes; of those beyond it the positions alone are kept, so
that a retry is still not applied twice. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol
from weakref import ref

from service.engine.results import StepOutput
from service.errors import QueueFullError

SMALL_ANSWER = 2048
"""Bytes up to which an answer is not counted."""
SMALL_FEED = 16 * 1024
"""Bytes up to which what a feed holds is not counted."""
_STREAM_BYTES = 32 * 1024 * 1024
"""Of one stream, from which no request is read until something was written."""


class AnswerBudget:
    """What is counted of all streams. max_bytes: that they may have together, but for a single answer."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0


class StreamBudget:
    """What is counted of one stream."""

    def __init__(self, budget: AnswerBudget) -> None:
        self._budget = budget
        self._room: asyncio.Future[None] | None = None
        self._is_closed = False
        self.num_bytes = 0
        self.is_full = False
        """Whether no request should be read until an answer was written."""

    def take(self, num_bytes: int) -> None:
        """Counts a request with its answer. Raises QueueFullError when those of all streams take too much memory."""
        budget = self._budget
        if budget.num_bytes and budget.num_bytes + num_bytes > budget.max_bytes:
            raise QueueFullError(
                f"requests in flight and their answers take up to {budget.num_bytes} bytes, the most is"
                f" {budget.max_bytes}, and this one may take {num_bytes}: read answers, or send and ask for less",
                retry_delay_s=0.5,
                max_unwritten_bytes=budget.max_bytes,
            )
        if not self._is_closed:
            self._count(num_bytes)

    def give_back(self, num_bytes: int) -> None:
        """An answer was written, or will not be."""
        if not self._is_closed:
            self._count(-num_bytes)
            if self._room is not None and not self._room.done() and not self.is_full:
                self._room.set_result(None)

    def close(self) -> None:
        """The stream is over: nothing more is written to it."""
        if not self._is_closed:
            self._count(-self.num_bytes)
            self._is_closed = True

    async def room(self) -> None:
        """Returns when it is full no longer. One task at a time."""
        while self.is_full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _count(self, num_bytes: int) -> None:
        self._budget.num_bytes += num_bytes
        self.num_bytes += num_bytes
        self.is_full = self.num_bytes >= _STREAM_BYTES


_LARGE = 16 * 1024
"""Bytes from which an answer is counted."""


class Droppable(Protocol):
    """What keeps an answer. It can be referred to weakly."""

    def drop(self) -> None:
        """Forgets the answer, but for its positions."""


class Replays:
    """Counts the answers of all sessions, for as long as anything keeps them. max_bytes: of those of `least` bytes and
    more, which alone are counted."""

    def __init__(self, max_bytes: int, *, least: int = _LARGE) -> None:
        self._max_bytes = max_bytes
        self._least = least
        self._kept: OrderedDict[ref[Droppable], int] = OrderedDict()
        self.num_bytes = 0

    def keep(self, answer: Droppable, num_bytes: int) -> None:
        """Counts an answer, once, and drops the oldest that are too many."""
        if num_bytes < self._least:
            return
        there = ref(answer, self._forget)
        self._forget(there)
        self._kept[there] = num_bytes
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            there = next(iter(self._kept))
            oldest = there()
            self._forget(there)
            if oldest is not None:
                oldest.drop()

    def _forget(self, there: ref[Droppable]) -> None:
        self.num_bytes -= self._kept.pop(there, 0)


def outputs_bytes(outputs: Iterable[StepOutput]) -> int:
    """About the bytes that the outputs of a feed take."""
    total = 0
    for output in outputs:
        total += 120 + 40 * len(output.token_ids)
        if output.logits is not None:
            total += output.logits.nbytes
        if output.trace is not None:
            total += sum(values.nbytes for values in output.trace.values())
    return total
