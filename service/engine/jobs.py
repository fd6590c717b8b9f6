"""What an engine is asked to do for a session, and where the session stands meanwhile.

A session is a `Lane` to the engine: a slot, a position and a queue of jobs that are done one after another. What is
called a token here is an `Item`: of a model that reads features, a vector; and what is called its logits, the values
that such a model may give instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from service.engine.arena import Slot
from service.engine.beam import BeamSearch
from service.engine.decoding import Choice, Decoding, FloatArray, FloatRow, IntArray
from service.engine.items import Item
from service.engine.results import StepOutput
from service.errors import CarouselError


class OutputKind(Enum):
    """What a feed returns after a token."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes the name, in Python

    NONE = "none"
    NEXT_TOKEN = "next_token"  # noqa: S105  # a token of a vocabulary
    TOP_K = "top_k"
    LOGITS = "logits"
    VALUES = "values"

    @property
    def is_vector(self) -> bool:
        """Whether it is all that the model gives, number by number."""
        return self is OutputKind.LOGITS or self is OutputKind.VALUES


class OutputSpec(NamedTuple):
    """What a feed returns. top_k: for `OutputKind.TOP_K`, 1 to the vocabulary's size. every_position: after each
    token, not the last alone. has_trace: what a look inside the step tells, too."""

    kind: OutputKind = OutputKind.NEXT_TOKEN
    top_k: int = 0
    every_position: bool = False
    has_trace: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One request of one session, or of several. reply(job, result) is called on the event loop, with a `Result`, or
    a `FrameJob`'s with a `Stepped`.

    tag: the caller's own, not looked at. submitted_s: a monotonic time, in seconds, set by the engine. started: whether
    it has been in a batch. whole, index: the job of which this is a part, whose answer goes there, and which part.
    """

    reply: Callable[[Any, Any], None]
    tag: Any = None
    submitted_s: float = 0.0
    started: bool = False
    whole: FrameJob | SearchJob | ScoreJob | None = None
    index: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class EncodeJob(Job):
    """Reads the source: the first job of a session of a model with an encoder."""

    source: Sequence[Item]


@dataclass(slots=True, eq=False, kw_only=True)
class FeedJob(Job):
    """Consumes tokens from `start` on, or None: from wherever the session is. No tokens: tells what comes next where it
    is, for which what is pending is run. targets: what came after each of the tokens, whose log-probabilities are
    collected as `scores`. has_mark: whether the lane's state after it is wanted."""

    start: int | None
    tokens: Sequence[Item]
    outputs: OutputSpec
    collected: list[StepOutput] = field(default_factory=list)
    targets: list[int] | None = None
    scores: list[float] = field(default_factory=list)
    has_mark: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class GenerateJob(Job):
    """Generates from `start` on. The engine may be at most `window` tokens ahead of what has been granted.

    choice: what is asked of the decoder, kept up to date between tokens. num_produced and parked are written by who
    drives the engine alone, num_granted by the event loop alone. One that goes on elsewhere begins with both at what it
    has produced there, and with the tokens that the repetition penalty has seen there.
    """

    start: int | None
    decoding: Decoding
    window: int
    choice: Choice | None = None
    seen: IntArray | None = None
    num_produced: int = 0
    num_granted: int = 0
    parked: bool = False

    @property
    def takes_likeliest(self) -> bool:
        """Whether the likeliest next token is all that it needs to know."""
        return self.decoding.is_plain and not self.decoding.log_probabilities

    @property
    def room(self) -> int:
        """How many tokens may be chosen before its window is full."""
        return self.window - self.num_produced + self.num_granted


@dataclass(slots=True, eq=False, kw_only=True)
class SearchJob(Job):
    """Searches for the likeliest continuations, then consumes the best. slots: of its rows, one a beam.

    lane: the session's, set when it begins; group: the rows that wait to be run.
    """

    start: int | None
    search: BeamSearch
    slots: list[Slot]
    lane: Lane | None = None
    group: Group | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class ScoreJob(Job):
    """Tells how likely continuations are; the session stays where it is. slots: one for each of the targets, none of
    which is empty.

    lane: the session's, set when it begins; lanes: those of the forks; scores: of each target's tokens so far.
    """

    start: int | None
    targets: list[list[int]]
    slots: list[Slot]
    lane: Lane | None = None
    lanes: list[Lane] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    num_left: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class FrameJob(Job):
    """Many sessions consume tokens at once; it begins when it is its turn in every lane.

    lanes: [N] distinct; starts: [N], or None: from wherever they are; tokens: one lane's after the other's; counts:
    [N] how many each, None: one each. The rest is the engine's: its answer's columns as they come together, the rows
    that wait to be run, the lanes where it is not yet its turn, and those that are not done; chain: frames of the same
    lanes that follow it; is_alone: whether it holds all of its lanes, and nothing but its chain waits in any of them.
    """

    lanes: list[Lane]
    starts: list[int] | None
    tokens: Sequence[Item]
    counts: list[int] | None
    outputs: OutputSpec
    positions: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    logits: FloatArray | None = None
    errors: list[tuple[int, CarouselError]] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    num_waiting: int = 0
    num_left: int = 0
    chain: list[FrameJob] = field(default_factory=list)
    is_alone: bool = False

    @property
    def width(self) -> int:
        """Tokens told for each session."""
        if self.outputs.kind is OutputKind.NEXT_TOKEN:
            return 1
        return self.outputs.top_k if self.outputs.kind is OutputKind.TOP_K else 0

    def unchain(self) -> None:
        """Puts what follows it into its lanes' own queues, because one of them is going another way."""
        if self.is_alone:
            self.is_alone = False
            if self.chain:
                for lane in self.lanes:
                    lane.jobs = list(self.chain)
                self.chain = []


NO_TOKENS: list[Item] = []
"""Every lane's list while there is nothing in it: a million idle sessions share one. Never changed in place."""
NO_JOBS: list[Job] = []
"""Likewise."""


@dataclass(slots=True, eq=False)
class Lane:
    """A session as its engine sees it. Once submitted, who drives the engine alone writes to it.

    Its lists are replaced, never changed in place: idle lanes share empty ones.

    row: of its slot; context_row: of the slot that has its context, its own unless it is a fork. position: target
    tokens consumed or generated. pending: tokens of the sequence that the state has not yet consumed (a start token, or
    the last token generated). next_logits: [V], what the state says comes next, when nothing is pending and it was
    kept. inputs[done:]: what the job in hand still has to run, the first `num_pending` of which came from
    `pending`.
    """

    slot: Slot
    pending: list[Item]
    position: int = 0
    next_logits: FloatRow | None = None
    jobs: list[Job] = field(default_factory=lambda: NO_JOBS)
    job: Job | None = None
    inputs: list[Item] = field(default_factory=lambda: NO_TOKENS)
    done: int = 0
    num_pending: int = 0
    ticket: int = 0
    closed: bool = False
    forked_from: Lane | None = None

    @property
    def num_remaining(self) -> int:
        """Tokens that the job in hand still has to run."""
        return len(self.inputs) - self.done

    @property
    def context_row(self) -> int:
        """The row of the arena that has its context."""
        return (self.forked_from or self).slot.row


@dataclass(slots=True, eq=False)
class Group:
    """Rows that take one token each, together: those of a frame, or a search's beams.

    reads, writes, contexts: [R] the rows of the arena that have their state, that get the next one, and that have their
    context; tokens: [R]. lanes, places: of a frame, [R] the lanes and their places in it. wants_logits: whether a token
    alone is not enough; top_k: how many of the likeliest are told, 0: none.
    """

    owner: FrameJob | SearchJob
    reads: list[int]
    writes: list[int]
    contexts: list[int]
    tokens: Sequence[Item]
    wants_logits: bool
    top_k: int = 0
    lanes: list[Lane] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    ticket: int = 0


def begun(jobs: Iterable[Job | None], now_s: float) -> tuple[float, ...]:
    """How long each of the jobs that begin now has waited, in seconds. They are begun from here on."""
    waited = []
    for job in jobs:
        if job is not None:
            whole = job.whole or job
            if not whole.started:
                whole.started = True
                waited.append(now_s - whole.submitted_s)
    return tuple(waited)
