"""The memory of requests and answers: large ones until they are written, and answers kept for retries.

A large answer counts with its largest possible size, together with the memory of a large feed or score, from the
acceptance of the request until the answer is written or the request has failed. Small answers are not counted, because
their number is limited.

Answers of feeds, searches and step batches are kept for retries. Small ones are limited by the number of sessions. Of
the large ones, the latest are kept, up to a number of bytes. Of the others only the positions are kept, so that a retry
is still not applied twice. Event loop only.
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
"""The largest answer, in bytes, that a `StreamBudget` does not count."""
SMALL_FEED = 16 * 1024
"""The largest feed, in bytes, that a `StreamBudget` does not count."""
_STREAM_BYTES = 32 * 1024 * 1024
"""The limit of one stream. Above it, no request of the stream is read until an answer is written."""


class AnswerBudget:
    """The counted bytes of all streams. max_bytes: their limit. A single larger answer is allowed."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0


class StreamBudget:
    """The counted bytes of one stream."""

    def __init__(self, budget: AnswerBudget) -> None:
        self._budget = budget
        self._room: asyncio.Future[None] | None = None
        self._is_closed = False
        self.num_bytes = 0
        self.is_full = False
        """Whether the caller should read no request until an answer is written."""

    def reserve(self, num_bytes: int) -> None:
        """Counts a request with its answer. Raises QueueFullError when all streams together take too much memory."""
        budget = self._budget
        if budget.num_bytes and budget.num_bytes + num_bytes > budget.max_bytes:
            raise QueueFullError(
                f"requests in flight and their responses take up to {budget.num_bytes} bytes, the limit is"
                f" {budget.max_bytes}, and this request may take {num_bytes}: read responses first, or send and"
                " request less",
                retry_delay_s=0.5,
                max_unwritten_bytes=budget.max_bytes,
            )
        if not self._is_closed:
            self._count(num_bytes)

    def release(self, num_bytes: int) -> None:
        """Subtracts an answer that was written, or will not be."""
        if not self._is_closed:
            self._count(-num_bytes)
            if self._room is not None and not self._room.done() and not self.is_full:
                self._room.set_result(None)

    def close(self) -> None:
        """Subtracts everything, because the stream has ended and nothing more is written."""
        if not self._is_closed:
            self._count(-self.num_bytes)
            self._is_closed = True

    async def room(self) -> None:
        """Returns when the stream is below its limit. One task at a time."""
        while self.is_full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _count(self, num_bytes: int) -> None:
        self._budget.num_bytes += num_bytes
        self.num_bytes += num_bytes
        self.is_full = self.num_bytes >= _STREAM_BYTES


_LARGE = 16 * 1024
"""The smallest kept answer, in bytes, that `Replays` counts."""


class Droppable(Protocol):
    """An object that keeps an answer. It must support weak references."""

    def drop(self) -> None:
        """Drops the answer, except its positions."""


class Replays:
    """Counts the kept answers of all sessions, as long as they are referenced. max_bytes: their limit. least: smaller
    answers are not counted."""

    def __init__(self, max_bytes: int, *, least: int = _LARGE) -> None:
        self._max_bytes = max_bytes
        self._least = least
        self._kept: OrderedDict[ref[Droppable], int] = OrderedDict()
        self.num_bytes = 0

    def keep(self, answer: Droppable, num_bytes: int) -> None:
        """Counts an answer once, and drops the oldest ones above the limit."""
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
    """Returns about the bytes of the outputs of a feed."""
    total = 0
    for output in outputs:
        total += 120 + 40 * len(output.token_ids)
        if output.logits is not None:
            total += output.logits.nbytes
        if output.trace is not None:
            total += sum(values.nbytes for values in output.trace.values())
    return total
