"""What goes into the next batch, pure and fair; and what a batch costs.

Jobs in hand wait in queues by the kind of graph and by the width (tokens) that they need, in powers of two, so that a
batch wastes less than half of itself on padding and a long feed never widens a batch of single tokens. Rules:

1. The queue whose head has waited longest is served, from its head: nobody starves.
2. A step takes at most `max_chunk` tokens of a job; what is left goes to the back: a long feed delays others
   by one chunk, never by its length.
3. rows x width <= `max_tokens`, and rows <= `max_rows`; one row always fits.
4. A job is in one queue at most, once.
5. A group, whose rows go together and take a token each, waits in the queue of single tokens for a batch that has room
   for all of it; one that is alone always fits.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, TypeAlias

from service.engine.active import Group, RowJob
from service.observer import GraphKind

_WEIGHT = 0.1
"""Of a new measurement of a batch's cost, in the exponential moving average."""


class Batch(NamedTuple):
    """Jobs and groups to advance together, in this order of rows.

    widths[i]: how many tokens of jobs[i] go in; width: the most of them. num_rows, num_tokens: of jobs and groups.
    runs_on: whether more of a job waits to be run once this batch was.
    """

    kind: GraphKind
    jobs: list[RowJob]
    widths: list[int]
    groups: list[Group]
    num_rows: int
    width: int
    num_tokens: int
    runs_on: bool


_Entry: TypeAlias = tuple[int, RowJob | Group, int, RowJob | None, Group | None]
"""One that waits: its ticket, itself, its width, and itself again as what it is. It is stale when its ticket is no
longer its member's. No named tuple: one is made for each row, and costs five times as much."""


class Scheduler:
    """Chooses batches. max_rows: in one; max_tokens: rows times width; max_chunk: one job's tokens in a step."""

    def __init__(self, *, max_rows: int, max_tokens: int, max_chunk: int) -> None:
        self.max_rows = max_rows
        self._max_tokens = max_tokens
        self._max_chunk = max_chunk
        self._queues: dict[tuple[GraphKind, int], deque[_Entry]] = {}
        self._last_ticket = 0
        self.num_waiting = 0
        """How many jobs and groups wait."""

    def __len__(self) -> int:
        return self.num_waiting

    def add(self, kind: GraphKind, job: RowJob, num_tokens: int) -> int:
        """Queues a job that needs `num_tokens` >= 1 run. Returns how many of them the next batch will take. Raises
        ValueError if it waits already."""
        if job.ticket:
            raise ValueError("the job waits already")
        width = min(num_tokens, self._max_chunk) if kind == "step" else num_tokens
        self._last_ticket += 1
        job.ticket = self._last_ticket
        key = (kind, 1 << (width - 1).bit_length())
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        queue.append((job.ticket, job, width, job, None))
        self.num_waiting += 1
        return width

    def add_group(self, group: Group) -> None:
        """Queues a group. Raises ValueError if it waits already."""
        if group.ticket:
            raise ValueError("the group waits already")
        self._last_ticket += 1
        group.ticket = self._last_ticket
        queue = self._queues.setdefault(("step", 1), deque())
        queue.append((group.ticket, group, 1, None, group))
        self.num_waiting += 1

    def remove(self, member: RowJob | Group) -> None:
        """Takes a job or a group out of its queue, if it is in one."""
        if member.ticket:
            member.ticket = 0  # its entry is stale now, and is dropped when its turn comes
            self.num_waiting -= 1

    def next_batch(self) -> Batch | None:
        """The next batch, whose members no longer wait; None when nothing does."""
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
        jobs: list[RowJob] = []
        widths: list[int] = []
        groups: list[Group] = []
        num_rows = num_tokens = 0
        runs_on = False
        while queue and num_rows < room:
            ticket, member, width, job, group = queue[0]
            if member.ticket == ticket:
                if group is not None:
                    size = group.num_rows
                    if num_rows and num_rows + size > room:
                        break
                    group.compact()
                    num_rows += size
                    num_tokens += size
                    groups.append(group)
                elif job is not None:
                    num_rows += 1
                    num_tokens += width
                    jobs.append(job)
                    widths.append(width)
                    runs_on = runs_on or job.runs_on
                member.ticket = 0
            queue.popleft()
        self.num_waiting -= len(jobs) + len(groups)
        return Batch(kind, jobs, widths, groups, num_rows, max(widths, default=1), num_tokens, runs_on)


class Costs:
    """Moving averages of seconds a batch, by graph, rows and width, both in powers of two: what decides where a batch
    runs. Pure: times are passed in.

    A size that was not seen yet is taken to cost in proportion to the nearest smaller one that was. One thread at a
    time.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[GraphKind, int, int], float] = {}

    def record(self, kind: GraphKind, num_rows: int, width: int, seconds: float) -> None:
        """A batch of `num_rows` rows of up to `width` tokens took so long, from assembling it to its results."""
        key = (kind, (num_rows - 1).bit_length(), (width - 1).bit_length())
        known = self._seconds.get(key)
        self._seconds[key] = seconds if known is None else known + _WEIGHT * (seconds - known)

    def estimate(self, kind: GraphKind, num_rows: int, width: int) -> float | None:
        """Seconds such a batch will take; None when nothing like it was ever measured."""
        rows, wide = (num_rows - 1).bit_length(), (width - 1).bit_length()
        known = self._seconds.get((kind, rows, wide))
        if known is not None:
            return known
        smaller = [
            (r + w, seconds) for (k, r, w), seconds in self._seconds.items() if k == kind and r <= rows and w <= wide
        ]
        if not smaller:
            return None
        size, seconds = max(smaller)
        return seconds * 2.0 ** (rows + wide - size)
