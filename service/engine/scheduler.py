"""What batches are made of, rows and groups; what goes into the next one, pure and fair; and what a batch costs.

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

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

from service.engine.decoding import Choice
from service.engine.jobs import NO_TOKENS, ActiveJob, Item, Job, Lane, Rest
from service.engine.limits import batch_tokens, chunk_tokens
from service.engine.results import FetchSpec, StepResult
from service.errors import CarouselError
from service.observer import GraphKind

_WEIGHT = 0.1
"""Of a new measurement of a batch's cost, in the exponential moving average."""


class RowJob(ABC):
    """A job in hand that has one row of a batch.

    inputs[done:]: tokens that it still has to run, the first `num_pending` of which came from `lane.pending`; none for
    a row of the readout. ticket: the scheduler's. fetch: the graph outputs that its row needs. runs_on: whether more of
    it waits to be run once its next batch was.
    """

    __slots__ = ("done", "fetch", "inputs", "job", "lane", "num_pending", "runs_on", "ticket")

    job: Job
    lane: Lane
    inputs: Sequence[Item]
    done: int
    num_pending: int
    ticket: int
    fetch: FetchSpec
    runs_on: bool

    survives_cancel: ClassVar[bool] = False

    @property
    def choice(self) -> Choice | None:
        """How its next token is chosen, when it is not simply the likeliest."""
        return None

    @property
    def source(self) -> Sequence[Item]:
        """What a row of the encoder reads."""
        return NO_TOKENS

    @abstractmethod
    def take(self, result: StepResult, row: int, width: int) -> None:
        """Its row was run, with `width` tokens.

        It brings the lane to where its state is first, and answers last: whatever raises here, the lane is whole and
        the job can be abandoned.
        """

    @abstractmethod
    def abandon(self, lane: Lane, error: CarouselError) -> None:
        """See `ActiveJob`."""

    def unchain(self) -> None:  # noqa: B027  # few kinds have a chain
        """See `ActiveJob`: only the lane's queue follows it."""

    def rest(self, lane: Lane) -> Rest | None:
        """See `ActiveJob`."""
        return Rest(list(self.inputs[self.done : self.num_pending]))

    def set_down(self) -> None:
        """Makes the lane of a job that ends midway whole: tokens that were pending before it, and that the state has
        not consumed, stay pending."""
        if self.done < self.num_pending:
            self.lane.pending = list(self.inputs[self.done : self.num_pending])


class GroupOwner(ActiveJob, Protocol):
    """A job in hand whose rows go as groups."""

    def take_group(self, group: Group, result: StepResult, begin: int) -> None:
        """The rows of a group were run: those of the batch from `begin` on."""

    def fail_group(self, group: Group, error: CarouselError) -> None:
        """The run or the commit of a group has failed. Every row of it that is not answered is answered `error`."""


@dataclass(slots=True, eq=False)
class Group:
    """Rows that take one token each, together: those of a step batch, or a search's beams.

    reads, writes, contexts: [R] the rows of the arena that have their state, that get the next one, and that have their
    context; tokens: [R]; runs_on: whether more of the owner waits to be run once they were; places: [R] of a step
    batch, its rows' places in it; dropped: places that left since, whose rows `compact` takes out.
    """

    owner: GroupOwner
    reads: list[int]
    writes: list[int]
    contexts: list[int]
    tokens: Sequence[Item]
    fetch: FetchSpec
    runs_on: bool = False
    places: Sequence[int] = ()
    dropped: set[int] = field(default_factory=set)
    ticket: int = 0

    @property
    def num_rows(self) -> int:
        """R, without those that left."""
        return len(self.tokens) - len(self.dropped)

    def compact(self) -> None:
        """Takes the rows of dropped places out, all in one go. Of a step batch: its three lists of rows are one."""
        if self.dropped:
            kept = [row for row, place in enumerate(self.places) if place not in self.dropped]
            self.reads = self.writes = self.contexts = [self.reads[row] for row in kept]
            self.tokens = [self.tokens[row] for row in kept]
            self.places = [self.places[row] for row in kept]
            self.dropped = set()


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
        self.max_tokens = max_tokens
        self.max_chunk = max_chunk
        self._queues: dict[tuple[GraphKind, int], deque[_Entry]] = {}
        self._last_ticket = 0
        self.num_waiting = 0
        """How many jobs and groups wait."""

    def __len__(self) -> int:
        return self.num_waiting

    def bound(self, num_rows: int, seconds: float, *, is_step_by_step: bool) -> None:
        """Has batches take some milliseconds at most, now that one of so many rows is known to take so long.
        is_step_by_step: whether a chunk takes as long as its steps do alone."""
        self.max_tokens = batch_tokens(seconds / num_rows)
        if is_step_by_step and num_rows == 1:
            self.max_chunk = chunk_tokens(seconds, self.max_chunk)

    def add(self, kind: GraphKind, job: RowJob, num_tokens: int) -> int:
        """Queues a job that needs `num_tokens` >= 1 run. Returns how many of them the next batch will take. Raises
        ValueError if it waits already."""
        if job.ticket:
            raise ValueError("the job waits already")
        width = min(num_tokens, self.max_chunk) if kind == "step" else num_tokens
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
        room = max(1, min(self.max_rows, self.max_tokens // bucket))
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
