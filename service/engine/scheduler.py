"""What goes into the next batch: pure, and fair.

Lanes wait in queues by the kind of graph and by the width (tokens) that they need, in powers of two, so that a batch
wastes less than half of itself on padding and a long feed never widens a batch of single tokens. Rules:

1. The queue whose head has waited longest is served, from its head: nobody starves.
2. A step takes at most `max_chunk` tokens of a lane; what is left goes to the back: a long feed delays others
   by one chunk, never by its length.
3. rows x width <= `max_tokens`, and rows <= `max_rows`; one row always fits.
4. A lane is in one queue at most, once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from service.engine.jobs import Lane
from service.observer import GraphKind


@dataclass(frozen=True, slots=True)
class Batch:
    """Lanes to advance together. widths[i]: how many tokens of lanes[i] go in."""

    kind: GraphKind
    lanes: list[Lane]
    widths: list[int]


class Scheduler:
    """Chooses batches. max_rows: lanes in one; max_tokens: rows times width; max_chunk: one lane's tokens in a step."""

    def __init__(self, *, max_rows: int, max_tokens: int, max_chunk: int) -> None:
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._max_chunk = max_chunk
        self._queues: dict[tuple[GraphKind, int], deque[tuple[int, Lane, int]]] = {}
        self._last_ticket = 0
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def add(self, kind: GraphKind, lane: Lane, num_tokens: int) -> None:
        """Queues a lane that needs `num_tokens` >= 1 run. Raises ValueError when it waits already."""
        if lane.ticket:
            raise ValueError("the lane waits already")
        width = min(num_tokens, self._max_chunk) if kind == "step" else num_tokens
        self._last_ticket += 1
        lane.ticket = self._last_ticket
        key = (kind, 1 << (width - 1).bit_length())
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        queue.append((lane.ticket, lane, width))
        self._num_waiting += 1

    def remove(self, lane: Lane) -> None:
        """Takes a lane out of its queue, if it is in one."""
        if lane.ticket:
            lane.ticket = 0  # its entry is stale now, and is dropped when its turn comes
            self._num_waiting -= 1

    def next_batch(self) -> Batch | None:
        """The next batch, whose lanes no longer wait; None when nobody does."""
        oldest: tuple[GraphKind, int] | None = None
        oldest_ticket = 0
        for key, queue in self._queues.items():
            while queue and queue[0][1].ticket != queue[0][0]:
                queue.popleft()
            if queue and (oldest is None or queue[0][0] < oldest_ticket):
                oldest, oldest_ticket = key, queue[0][0]
        if oldest is None:
            return None
        kind, bucket = oldest
        queue = self._queues[oldest]
        room = max(1, min(self._max_rows, self._max_tokens // bucket))
        lanes: list[Lane] = []
        widths: list[int] = []
        while queue and len(lanes) < room:
            ticket, lane, width = queue.popleft()
            if lane.ticket == ticket:
                lane.ticket = 0
                lanes.append(lane)
                widths.append(width)
        self._num_waiting -= len(lanes)
        return Batch(kind, lanes, widths)
