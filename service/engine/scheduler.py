"""What goes into the next batch: pure, and fair.

Lanes wait in queues by the kind of graph and by the width (tokens) that they need, in powers of two, so that a batch
wastes less than half of itself on padding and a long feed never widens a batch of single tokens. Rules:

1. The queue whose head has waited longest is served, from its head: nobody starves.
2. A step takes at most `max_chunk` tokens of a lane; what is left goes to the back: a long feed delays others
   by one chunk, never by its length.
3. rows x width <= `max_tokens`, and rows <= `max_rows`; one row always fits.
4. A lane is in one queue at most, once.
5. A group, whose rows go together and take a token each, waits in the queue of single tokens for a batch that has room
   for all of it; one that is alone always fits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from service.engine.jobs import Group, Lane
from service.observer import GraphKind


@dataclass(frozen=True, slots=True)
class Batch:
    """Lanes and groups to advance together. widths[i]: how many tokens of lanes[i] go in. num_rows: of all."""

    kind: GraphKind
    lanes: list[Lane]
    widths: list[int]
    groups: list[Group]
    num_rows: int

    @property
    def width(self) -> int:
        """Tokens of the row that has most."""
        return max(self.widths, default=1)

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""
        return sum(self.widths) + self.num_rows - len(self.lanes)


class Scheduler:
    """Chooses batches. max_rows: in one; max_tokens: rows times width; max_chunk: one lane's tokens in a step."""

    def __init__(self, *, max_rows: int, max_tokens: int, max_chunk: int) -> None:
        self.max_rows = max_rows
        self._max_tokens = max_tokens
        self._max_chunk = max_chunk
        self._queues: dict[tuple[GraphKind, int], deque[tuple[int, Lane | Group, int]]] = {}
        self._last_ticket = 0
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def add(self, kind: GraphKind, lane: Lane | Group, num_tokens: int) -> None:
        """Queues a lane that needs `num_tokens` >= 1 run, or a group, with 1. Raises ValueError if it waits already."""
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

    def remove(self, lane: Lane | Group) -> None:
        """Takes a lane or a group out of its queue, if it is in one."""
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
        room = max(1, min(self.max_rows, self._max_tokens // bucket))
        lanes: list[Lane] = []
        widths: list[int] = []
        groups: list[Group] = []
        num_rows = 0
        while queue and num_rows < room:
            ticket, member, width = queue[0]
            if member.ticket == ticket:
                if isinstance(member, Group):
                    size = len(member.tokens)
                    if num_rows and num_rows + size > room:
                        break
                    num_rows += size
                    groups.append(member)
                else:
                    num_rows += 1
                    lanes.append(member)
                    widths.append(width)
                member.ticket = 0
            queue.popleft()
        self._num_waiting -= len(lanes) + len(groups)
        return Batch(kind, lanes, widths, groups, num_rows)
