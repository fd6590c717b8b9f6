"""Chooses the rows of the next batch, and estimates what a batch costs. Knows no clock and no tensors.

A batch consists of single rows (`RowJob`) and groups of rows (`Group`). Active jobs wait in queues. There is one queue
for each pair of graph kind and width, where the width is the number of tokens in the job's next batch, rounded up to a
power of two. So less than half of a row is padding, and a long feed never widens a batch of single tokens. Rules:

1. The queue whose head has waited longest is served, from its head. No job starves.
2. A step takes at most `max_chunk` tokens of a job; for the rest, the job queues again, at the back. So a long feed
   delays other jobs by one chunk, never by its length.
3. rows x width <= `max_tokens`, and rows <= `max_rows`. A batch of one row or of one group is always allowed.
4. A job is in at most one queue, at most once.
5. The rows of a group take one token each and always run in the same batch. A group waits in the queue of single tokens
   until a batch has room for all its rows. An empty batch has room for any group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

from service.engine.decoding import Choice
from service.engine.jobs import NO_TOKENS, ActiveJob, Item, Job, Lane, Remainder
from service.engine.limits import batch_tokens, chunk_tokens
from service.engine.results import FetchSpec, StepResult
from service.errors import CarouselError
from service.observer import GraphKind

_WEIGHT = 0.1
"""Weight of a new measurement in the exponential moving average of a batch's cost."""


class RowJob(ABC):
    """An active job that has one row of a batch."""

    __slots__ = ("done", "fetch", "inputs", "job", "lane", "num_pending", "runs_on", "ticket")

    job: Job
    lane: Lane
    inputs: Sequence[Item]
    """Tokens to run; `inputs[done:]` are not run yet. Empty for a row of the readout or of the encoder."""
    done: int
    num_pending: int
    """How many of the first `inputs` were taken from `lane.pending`."""
    ticket: int
    """Written by the scheduler; 0 while the job is not queued."""
    fetch: FetchSpec
    """The graph outputs that the row needs."""
    runs_on: bool
    """Whether the job needs another batch after its next one."""

    survives_cancel: ClassVar[bool] = False

    @property
    def choice(self) -> Choice | None:
        """How the next token is chosen; None when it is always the likeliest one."""
        return None

    @property
    def source(self) -> Sequence[Item]:
        """The tokens that a row of the encoder reads."""
        return NO_TOKENS

    @abstractmethod
    def take(self, result: StepResult, row: int, width: int) -> None:
        """Commits the result of the job's row: row `row` of `result`, where the row ran `width` tokens.

        It first updates the lane to match its state, and answers last. So if it raises, the lane is consistent and the
        job can be abandoned.
        """

    @abstractmethod
    def abandon(self, lane: Lane, error: CarouselError) -> None:
        """See `ActiveJob`."""

    def unchain(self) -> None:  # noqa: B027  # few kinds have a chain
        """See `ActiveJob`. Does nothing: a row job has no chain, only the lane's queue."""

    def remainder(self, lane: Lane) -> Remainder | None:
        """See `ActiveJob`."""
        return Remainder(list(self.inputs[self.done : self.num_pending]))

    def restore_pending(self) -> None:
        """Makes the lane consistent when the job ends early: inputs that were taken from `lane.pending` and that the
        state has not consumed become pending again."""
        if self.done < self.num_pending:
            self.lane.pending = list(self.inputs[self.done : self.num_pending])


class GroupOwner(ActiveJob, Protocol):
    """An active job whose rows run as groups."""

    def take_group(self, group: Group, result: StepResult, begin: int) -> None:
        """Commits the result of a group's rows, which are the rows of the batch from `begin` on."""

    def fail_group(self, group: Group, error: CarouselError) -> None:
        """Answers `error` for each row of the group that is not answered yet. The run or the commit has failed."""


@dataclass(slots=True, eq=False)
class Group:
    """Rows that run together and take one token each: those of a step batch, or a search's beams. R is their number."""

    owner: GroupOwner
    reads: list[int]
    """[R] the arena rows that the state is read from."""
    writes: list[int]
    """[R] the arena rows that the next state is written to."""
    contexts: list[int]
    """[R] the arena rows that hold the context."""
    tokens: Sequence[Item]
    fetch: FetchSpec
    runs_on: bool = False
    """Whether the owner needs another batch after this one."""
    places: Sequence[int] = ()
    """[R] for a step batch: each row's index in it."""
    dropped: set[int] = field(default_factory=set)
    """Places whose rows must not run any more; `compact` removes these rows."""
    ticket: int = 0
    """Written by the scheduler; 0 while the group is not queued."""

    @property
    def num_rows(self) -> int:
        """R, without the dropped rows."""
        return len(self.tokens) - len(self.dropped)

    def compact(self) -> None:
        """Removes the rows of all dropped places. Only step batches drop rows, and their three row lists are equal."""
        if self.dropped:
            kept = [row for row, place in enumerate(self.places) if place not in self.dropped]
            self.reads = self.writes = self.contexts = [self.reads[row] for row in kept]
            self.tokens = [self.tokens[row] for row in kept]
            self.places = [self.places[row] for row in kept]
            self.dropped = set()


class Batch(NamedTuple):
    """Jobs and groups to advance together. The rows of the batch have this order: first jobs, then groups.

    widths[i]: number of tokens of jobs[i] in this batch; width: the largest of them. num_rows, num_tokens: totals over
    jobs and groups. runs_on: whether one of the jobs needs another batch after this one.
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
"""A queue entry: ticket, member, width, then the member again as a job or as a group. An entry is stale when its ticket
differs from its member's. Not a NamedTuple: one is made for each row, and a NamedTuple costs five times as much."""


class Scheduler:
    """Chooses batches.

    max_rows: most rows of a batch; max_tokens: most rows times width; max_chunk: most tokens of one job in a step.
    """

    def __init__(self, *, max_rows: int, max_tokens: int, max_chunk: int) -> None:
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self.max_chunk = max_chunk
        self._queues: dict[tuple[GraphKind, int], deque[_Entry]] = {}
        self._last_ticket = 0
        self.num_queued = 0
        """Number of queued jobs and groups."""

    def __len__(self) -> int:
        return self.num_queued

    def bound(self, num_rows: int, seconds: float, *, is_step_by_step: bool) -> None:
        """Sets `max_tokens` so that a batch takes some milliseconds at most.

        seconds: the measured time of a batch of `num_rows` rows of one token. is_step_by_step: whether a chunk takes as
        long as its steps one by one; then a measurement of one row also limits `max_chunk`.
        """
        self.max_tokens = batch_tokens(seconds / num_rows)
        if is_step_by_step and num_rows == 1:
            self.max_chunk = chunk_tokens(seconds, self.max_chunk)

    def add(self, kind: GraphKind, job: RowJob, num_tokens: int) -> int:
        """Queues a job that needs `num_tokens` >= 1 run. Returns how many of them its next batch takes.

        Raises ValueError if the job is queued already.
        """
        if job.ticket:
            raise ValueError("the job already waits")
        width = min(num_tokens, self.max_chunk) if kind == "step" else num_tokens
        self._last_ticket += 1
        job.ticket = self._last_ticket
        key = (kind, 1 << (width - 1).bit_length())
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        queue.append((job.ticket, job, width, job, None))
        self.num_queued += 1
        return width

    def add_group(self, group: Group) -> None:
        """Queues a group. Raises ValueError if it is queued already."""
        if group.ticket:
            raise ValueError("the group already waits")
        self._last_ticket += 1
        group.ticket = self._last_ticket
        queue = self._queues.setdefault(("step", 1), deque())
        queue.append((group.ticket, group, 1, None, group))
        self.num_queued += 1

    def remove(self, member: RowJob | Group) -> None:
        """Removes a job or a group from its queue. Does nothing when it is not queued."""
        if member.ticket:
            member.ticket = 0  # the entry in the queue is stale now; `next_batch` skips it
            self.num_queued -= 1

    def next_batch(self) -> Batch | None:
        """Returns the next batch and removes its members from their queues; None when nothing is queued."""
        oldest: tuple[GraphKind, int] | None = None
        oldest_ticket = 0
        for key, queue in self._queues.items():
            while queue and queue[0][1].ticket != queue[0][0]:
                queue.popleft()
            if queue and (oldest is None or queue[0][0] < oldest_ticket):
                oldest, oldest_ticket = key, queue[0][0]
        if oldest is None:
            return None
        kind, width_class = oldest
        queue = self._queues[oldest]
        room = max(1, min(self.max_rows, self.max_tokens // width_class))
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
        self.num_queued -= len(jobs) + len(groups)
        return Batch(kind, jobs, widths, groups, num_rows, max(widths, default=1), num_tokens, runs_on)


class Costs:
    """Moving averages of the seconds that a batch takes, by graph, rows and width, the last two in powers of two.

    The engine uses them to decide where a batch runs. For a size without measurement, the estimate is proportional to
    the nearest smaller size with one. Times are passed in. For one thread at a time.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[GraphKind, int, int], float] = {}

    def record(self, kind: GraphKind, num_rows: int, width: int, seconds: float) -> None:
        """Records that a batch of `num_rows` rows of up to `width` tokens took `seconds`, from assembly to commit."""
        key = (kind, (num_rows - 1).bit_length(), (width - 1).bit_length())
        known = self._seconds.get(key)
        self._seconds[key] = seconds if known is None else known + _WEIGHT * (seconds - known)

    def estimate(self, kind: GraphKind, num_rows: int, width: int) -> float | None:
        """Returns the expected seconds of such a batch; None when neither it nor a smaller one was ever measured."""
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
