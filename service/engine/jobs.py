"""Items: what steps consume; jobs: what an engine is asked to do for a session; and lanes: where a session stands.

A session is a `Lane` to the engine: a slot, a position and a queue of jobs, which are done one after the other. A job
is the request alone. While it is done its running state is an `ActiveJob`, of which each kind of job has its own.

A token is an `Item` here: a number or, for a model that reads features, a vector, which is the bytes of its numbers,
32-bit floats, little-endian. So both are immutable values that are kept, compared and stored bit by bit, and only here
are they arrays. Logits are the values that such a model may give instead.
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
"""A token's number, or a vector."""

ITEM_SIZE = 4
"""Bytes of a number."""


def size_of(items: Sequence[Item]) -> int:
    """About the bytes that a list of items takes in memory."""
    first = items[0] if items else 0
    return len(items) * (48 + len(first) if isinstance(first, bytes) else 40)


class Items:
    """Arrays of items. feature_size: numbers in a vector, F; 0 when items are tokens."""

    def __init__(self, feature_size: int) -> None:
        self.feature_size = feature_size

    def blank(self, num_rows: int, width: int) -> Array:
        """[num_rows, width] tokens, or [num_rows, width, F] features: all zero."""
        if self.feature_size:
            return np.zeros((num_rows, width, self.feature_size), np.float32)
        return np.zeros((num_rows, width), np.int64)

    def array(self, items: Sequence[Item]) -> Array:
        """Items as an array: [N] or [N, F]."""
        if self.feature_size:
            joined = b"".join(items)  # type: ignore[arg-type]  # of a model that reads features
            return np.frombuffer(joined, "<f4").reshape(len(items), self.feature_size)
        return np.array(items, np.int64)

    @staticmethod
    def vector(values: Array) -> bytes:
        """The item of a vector [F] of 32-bit floats."""
        return values.astype("<f4", copy=False).tobytes()


class OutputKind(Enum):
    """What a feed returns after a token."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes the name, in Python

    is_vector: bool
    """Whether the output is every number that the model gives."""

    NONE = "none"
    NEXT_TOKEN = "next_token"  # noqa: S105  # a token of a vocabulary
    TOP_K = "top_k"
    LOGITS = "logits"
    VALUES = "values"
    EMITTED = "emitted"

    def __init__(self, value: str) -> None:
        self.is_vector = value in ("logits", "values")


class OutputSpec(NamedTuple):
    """What a feed returns. top_k: for `OutputKind.TOP_K`, 1 to the vocabulary's size. every_position: after each
    token, instead of after the last alone. has_trace: the trace of the step, too."""

    kind: OutputKind = OutputKind.NEXT_TOKEN
    top_k: int = 0
    every_position: bool = False
    has_trace: bool = False


VALUES = OutputSpec(OutputKind.VALUES)
"""All numbers that a step gives."""


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One request of one session, or of several. reply(job, result) is called on the event loop, with a `Result`, or
    for a `StepBatchJob` with a `Stepped`.

    tag: the caller's own; the engine only hands it to the observer. submitted_s: a monotonic time, in seconds, set by
    the engine. is_started: whether a batch has run some of it. slots: forks that the job owns; its answer frees them.
    """

    reply: Callable[[Any, Any], None]
    tag: Any = None
    submitted_s: float = 0.0
    is_started: bool = False
    slots: Sequence[Slot] = ()


@dataclass(slots=True, eq=False, kw_only=True)
class EncodeJob(Job):
    """Reads the source: the first job of a session of a model with an encoder."""

    source: Sequence[Item]


@dataclass(slots=True, eq=False, kw_only=True)
class FeedJob(Job):
    """Consumes tokens from position `start` on, or from the session's position when it is None. Without tokens it
    returns what comes next at the session's position, and runs what is pending for that. has_mark: the answer carries
    the lane's state after it."""

    start: int | None
    tokens: Sequence[Item]
    outputs: OutputSpec
    has_mark: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class GenerateJob(Job):
    """Generates from position `start` on. The engine is at most `window` tokens ahead of the tokens granted.

    num_produced and is_parked are written by the side that drives the engine alone, num_granted by the event loop
    alone. A generation that is resumed begins with num_produced and num_granted at its number of tokens so far, and
    with `seen`: the tokens that its repetition penalty has noted. is_parked: whether it waits for a grant.
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
    """Searches for the likeliest continuations, then consumes the best. slots: one for each beam."""

    start: int | None
    search: BeamSearch


@dataclass(slots=True, eq=False, kw_only=True)
class ScoreJob(Job):
    """Returns how likely continuations are; the session's position does not change. targets: none is empty; slots: one
    for each of the targets."""

    start: int | None
    targets: list[list[int]]


@dataclass(slots=True, eq=False, kw_only=True)
class StepBatchJob(Job):
    """Many sessions consume tokens at once. It begins when its turn has come in every lane.

    lanes: [N] distinct; starts: [N] positions, or None: wherever the lanes are; tokens: one lane's after the other's;
    counts: [N] tokens of each lane, None: one each.
    """

    lanes: list[Lane]
    starts: list[int] | None
    tokens: Sequence[Item]
    counts: list[int] | None
    outputs: OutputSpec

    @property
    def width(self) -> int:
        """Token ids returned for each session."""
        if self.outputs.kind is OutputKind.NEXT_TOKEN:
            return 1
        return self.outputs.top_k if self.outputs.kind is OutputKind.TOP_K else 0


class Rest(NamedTuple):
    """What a lane's saved state holds of the job in hand. pending: see `Lane`. num_produced, seen, decoding: of a
    generation."""

    pending: list[Item]
    num_produced: int = 0
    seen: IntArray | None = None
    decoding: Decoding | None = None


class Queued(Protocol):
    """An entry of a lane's queue."""

    def begin(self, lane: Lane) -> None:
        """Its turn in the lane has come."""

    def drop(self, lane: Lane, error: CarouselError) -> None:
        """It is answered `error` without a turn."""


class ActiveJob(Protocol):
    """The running state of a job in hand: `lane.active` of each of its lanes, until it ends there."""

    @property
    def job(self) -> Job:
        """The request."""

    @property
    def survives_cancel(self) -> bool:
        """Whether cancelling the lane's work leaves it alone."""

    def abandon(self, lane: Lane, error: CarouselError) -> None:
        """Ends it for this lane at a token boundary and answers `error`. `lane.active` is cleared already."""

    def unchain(self) -> None:
        """Prepares for something else that is asked of one of its lanes: its followers wait in the lanes' queues."""

    def rest(self, lane: Lane) -> Rest | None:
        """What a saved state of the lane holds now; None while its state cannot be read."""


NO_TOKENS: list[Item] = []
"""The list of every lane that has nothing pending: a million idle sessions share one. Never changed in place."""
NO_JOBS: deque[Queued] = deque()
"""The queue of every lane that has no job behind the one in hand. Never changed either."""


@dataclass(slots=True, eq=False)
class Lane:
    """A session as its engine sees it. Once it was submitted, only the side that drives the engine writes to it.

    `pending` is replaced, never changed in place: idle lanes share an empty one.

    position: target tokens consumed or generated. pending: tokens of the sequence that the state has not yet consumed
    (a start token, or the last token generated). next_logits: [V], what the state says comes next, when nothing is
    pending and it was kept. active: the job that is done now; queue: the jobs behind it. refusal: the error with which
    every further job is answered: set when the lane is closed or cannot be used any more. forked_from: the lane whose
    context a fork reads.
    """

    slot: Slot
    pending: list[Item]
    position: int = 0
    next_logits: FloatRow | None = None
    queue: deque[Queued] = field(default_factory=lambda: NO_JOBS)
    active: ActiveJob | None = None
    refusal: CarouselError | None = None
    is_closed: bool = False
    forked_from: Lane | None = None

    @property
    def context_row(self) -> int:
        """The row of the arena that has its context."""
        return (self.forked_from or self).slot.row

    def enqueue(self, entry: Queued) -> None:
        """Puts an entry at the end of the queue."""
        if self.active is not None:
            self.active.unchain()
        if self.queue is NO_JOBS:
            self.queue = deque((entry,))
        else:
            self.queue.append(entry)

    def begin_next(self) -> None:
        """Begins the entries of the queue until a job is in hand."""
        queue = self.queue
        while queue and self.active is None:
            queue.popleft().begin(self)
            if queue is not self.queue:
                return
        if not queue:
            self.queue = NO_JOBS

    def drop_queue(self, error: CarouselError) -> int:
        """Answers every entry of the queue `error`. Returns how many there were."""
        dropped, self.queue = self.queue, NO_JOBS
        for entry in dropped:
            entry.drop(self, error)
        return len(dropped)
