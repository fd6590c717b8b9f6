"""Defines items (what steps consume), jobs (requests to an engine) and lanes (an engine's view of a session).

To the engine, a session is a `Lane`: a slot, a position and a queue of jobs, which run one after the other. A job holds
the request, and few fields that change while it runs: `is_started`, the counters and `is_parked` of a generation, the
`search` of a search. An `ActiveJob` holds the rest of its running state; each kind of job has its own class of it.

A token is an `Item`: its number or, for a model that reads features, a vector in the form of bytes (32-bit floats,
little-endian). So both are immutable values, which are kept, compared and stored bit by bit. Only `Items` makes arrays
of them. Such a model may return values instead of logits; the code names both logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from service.engine.arena import Array, Slot
from service.engine.beam import BeamSearch
from service.engine.decoding import Decoding, FloatRow, IntArray
from service.errors import CarouselError

Item: TypeAlias = int | bytes
"""A token's number, or the bytes of a vector."""

ITEM_SIZE = 4
"""Bytes of one number in a vector."""


def size_of(items: Sequence[Item]) -> int:
    """Returns the approximate memory of a list of items, in bytes."""
    first = items[0] if items else 0
    return len(items) * (48 + len(first) if isinstance(first, bytes) else 40)


class Items:
    """Makes arrays of items. feature_size: F, the numbers in a vector; 0 when items are tokens."""

    def __init__(self, feature_size: int) -> None:
        self.feature_size = feature_size

    def blank(self, num_rows: int, width: int) -> Array:
        """Returns zeros: [num_rows, width] tokens, or [num_rows, width, F] features."""
        if self.feature_size:
            return np.zeros((num_rows, width, self.feature_size), np.float32)
        return np.zeros((num_rows, width), np.int64)

    def array(self, items: Sequence[Item]) -> Array:
        """Returns items as an array: [N] tokens or [N, F] features."""
        if self.feature_size:
            joined = b"".join(items)  # type: ignore[arg-type]  # of a model that reads features
            return np.frombuffer(joined, "<f4").reshape(len(items), self.feature_size)
        return np.array(items, np.int64)

    @staticmethod
    def vector(values: Array) -> bytes:
        """Returns a vector [F] of 32-bit floats as an item."""
        return values.astype("<f4", copy=False).tobytes()


class OutputKind(Enum):
    """What a feed returns after a token."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes the name, in Python

    is_vector: bool
    """Whether the output contains every number that the model returns for a token."""

    NONE = "none"
    NEXT_TOKEN = "next_token"  # noqa: S105  # a token of a vocabulary
    TOP_K = "top_k"
    LOGITS = "logits"
    VALUES = "values"
    EMITTED = "emitted"

    def __init__(self, value: str) -> None:
        self.is_vector = value in ("logits", "values")


class OutputSpec(NamedTuple):
    """What a feed returns.

    top_k: for `OutputKind.TOP_K`, 1 to the vocabulary's size. every_position: an output after each token, instead of
    only after the last. has_trace: outputs also contain the trace of their step.
    """

    kind: OutputKind = OutputKind.NEXT_TOKEN
    top_k: int = 0
    every_position: bool = False
    has_trace: bool = False


VALUES = OutputSpec(OutputKind.VALUES)
"""All numbers that a step returns."""


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One request of one session, or of several. Subclasses are the kinds of jobs."""

    reply: Callable[[Any, Any], None]
    """Called on the event loop with the job and a `Result`, or for a `StepBatchJob` with a `Stepped`."""
    tag: Any = None
    """The caller's own; the engine only passes it to the observer."""
    submitted_s: float = 0.0
    """Monotonic time in seconds, set by the engine."""
    is_started: bool = False
    """Whether a batch has run a part of the job."""
    slots: Sequence[Slot] = ()
    """Forks that the job owns; its answer frees them."""


@dataclass(slots=True, eq=False, kw_only=True)
class EncodeJob(Job):
    """Encodes the source: the first job of a session of a model with an encoder."""

    source: Sequence[Item]


@dataclass(slots=True, eq=False, kw_only=True)
class FeedJob(Job):
    """Consumes tokens from position `start` on, or from the session's position when `start` is None.

    Without tokens it returns what comes next at the session's position, and runs the pending tokens if that needs them.
    has_mark: the answer contains the lane's state after the feed.
    """

    start: int | None
    tokens: Sequence[Item]
    outputs: OutputSpec
    has_mark: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class GenerateJob(Job):
    """Generates from position `start` on, at most `window` tokens ahead of the granted tokens.

    num_produced: tokens of the generation so far, without the end or stop token. num_granted: tokens of the generation
    that count as read. Only the thread that drives the engine writes num_produced and is_parked, only the event loop
    writes num_granted. A resumed generation begins with num_produced and num_granted equal to its number of tokens so
    far, and with `seen`: the tokens that its repetition penalty has noted. is_parked: whether the generation waits for
    a grant.
    """

    start: int | None
    decoding: Decoding
    window: int
    seen: IntArray | None = None
    num_produced: int = 0
    num_granted: int = 0
    is_parked: bool = False

    @property
    def room(self) -> int:
        """How many tokens may be chosen before the window is full."""
        return self.window - self.num_produced + self.num_granted


@dataclass(slots=True, eq=False, kw_only=True)
class SearchJob(Job):
    """Searches for the likeliest continuations, then consumes the best one. slots: one for each beam."""

    start: int | None
    search: BeamSearch


@dataclass(slots=True, eq=False, kw_only=True)
class ScoreJob(Job):
    """Returns how likely given continuations are. The session's position does not change.

    targets: the continuations, none of them empty; slots: one for each target.
    """

    start: int | None
    targets: list[list[int]]


@dataclass(slots=True, eq=False, kw_only=True)
class StepBatchJob(Job):
    """Lets many sessions consume tokens at once. It begins when its turn has come in every lane.

    lanes: [N] distinct; starts: [N] positions, or None for the lanes' present positions; tokens: those of the first
    lane, then those of the second, and so on; counts: [N] tokens of each lane, or None for one token each.
    """

    lanes: list[Lane]
    starts: list[int] | None
    tokens: Sequence[Item]
    counts: list[int] | None
    outputs: OutputSpec

    @property
    def width(self) -> int:
        """Number of token ids returned for each session."""
        if self.outputs.kind is OutputKind.NEXT_TOKEN:
            return 1
        return self.outputs.top_k if self.outputs.kind is OutputKind.TOP_K else 0


class Remainder(NamedTuple):
    """What a saved state of a lane contains about the active job.

    pending: see `Lane`. num_produced, seen, decoding: for a generation only.
    """

    pending: list[Item]
    num_produced: int = 0
    seen: IntArray | None = None
    decoding: Decoding | None = None


class Queued(Protocol):
    """An entry of a lane's queue."""

    def begin(self, lane: Lane) -> None:
        """Begins the entry: its turn in the lane has come."""

    def drop(self, lane: Lane, error: CarouselError) -> None:
        """Answers the entry with `error`: its turn will not come."""


class ActiveJob(Protocol):
    """The running state of a job: `lane.active` of each of its lanes, until it ends there."""

    @property
    def job(self) -> Job:
        """The request."""

    @property
    def survives_cancel(self) -> bool:
        """Whether the job continues when the lane's work is cancelled."""

    def abandon(self, lane: Lane, error: CarouselError) -> None:
        """Stops the job for this lane at a token boundary and answers `error`. `lane.active` is already cleared."""

    def unchain(self) -> None:
        """Moves the jobs that follow this one into the lanes' queues, because one of the lanes gets another request."""

    def remainder(self, lane: Lane) -> Remainder | None:
        """Returns what a saved state of the lane contains about this job now; None while the state cannot be read."""


NO_TOKENS: list[Item] = []
"""The `pending` of every lane without pending tokens: a million idle sessions share this list. Never changed."""
NO_JOBS: deque[Queued] = deque()
"""The queue of every lane without queued jobs. Never changed."""


@dataclass(slots=True, eq=False)
class Lane:
    """A session as its engine sees it. After the first submission, only the thread that drives the engine writes to
    it."""

    slot: Slot
    pending: list[Item]
    """Tokens of the sequence that the state has not consumed yet: a start token, or the last generated token. Replaced,
    never changed in place, because idle lanes share an empty list."""
    position: int = 0
    """Number of target tokens consumed or generated."""
    next_logits: FloatRow | None = None
    """[V], the logits of the next token, if nothing is pending and they were kept."""
    queue: deque[Queued] = field(default_factory=lambda: NO_JOBS)
    """The jobs that wait behind the active one."""
    active: ActiveJob | None = None
    refusal: CarouselError | None = None
    """The answer to every further job, once the lane is closed or unusable."""
    is_closed: bool = False
    forked_from: Lane | None = None
    """For a fork: the lane whose context it reads."""

    @property
    def context_row(self) -> int:
        """The arena row that holds the lane's context."""
        return (self.forked_from or self).slot.row

    def enqueue(self, entry: Queued) -> None:
        """Appends an entry to the queue."""
        if self.active is not None:
            self.active.unchain()
        if self.queue is NO_JOBS:
            self.queue = deque((entry,))
        else:
            self.queue.append(entry)

    def begin_next(self) -> None:
        """Begins entries of the queue until one of them becomes the active job."""
        queue = self.queue
        while queue and self.active is None:
            queue.popleft().begin(self)
            if queue is not self.queue:  # `begin` has replaced the queue: this one is out of date
                return
        if not queue:
            self.queue = NO_JOBS

    def drop_queue(self, error: CarouselError) -> int:
        """Answers every entry of the queue with `error`. Returns their number."""
        dropped, self.queue = self.queue, NO_JOBS
        for entry in dropped:
            entry.drop(self, error)
        return len(dropped)
