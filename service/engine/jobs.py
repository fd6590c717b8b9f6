"""What an engine is asked to do for a session, what it answers, and where the session stands between the two.

A session is a `Lane` to the engine: a slot, a position and a queue of jobs that are done one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from service.engine.arena import Slot
from service.engine.decoding import Choice, Decoding, FinishReason, FloatRow
from service.errors import CarouselError


class OutputKind(Enum):
    """What a feed returns after a token."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes the name, in Python

    NONE = "none"
    NEXT_TOKEN = "next_token"  # noqa: S105  # a token of a vocabulary
    TOP_K = "top_k"
    LOGITS = "logits"


class OutputSpec(NamedTuple):
    """What a feed returns. top_k: for `OutputKind.TOP_K`, 1 to the vocabulary's size. every_position: after each
    token, not the last alone."""

    kind: OutputKind = OutputKind.NEXT_TOKEN
    top_k: int = 0
    every_position: bool = False


class StepOutput(NamedTuple):
    """What the model says comes next at `position`. logits: [V], for `OutputKind.LOGITS` alone."""

    position: int
    token_ids: list[int]
    log_probabilities: list[float] | None = None
    logits: FloatRow | None = None


class Encoded(NamedTuple):
    """Answers an `EncodeJob`."""

    position: int


class Fed(NamedTuple):
    """Answers a `FeedJob`. position: after it."""

    position: int
    outputs: list[StepOutput]


class Generated(NamedTuple):
    """One of the answers to a `GenerateJob`: a token, the end, or both. position: after it."""

    position: int
    token: int | None
    log_probability: float | None
    finish_reason: FinishReason | None


class Failed(NamedTuple):
    """Answers any job that was not done, or not to its end. position: where the session stands."""

    position: int
    error: CarouselError


Result = Encoded | Fed | Generated | Failed


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One request of one session. reply(job, result) is called on the event loop.

    tag: the caller's own, not looked at. submitted_s: a monotonic time, in seconds, set by the engine. started: whether
    it has been in a batch.
    """

    reply: Callable[[Job, Result], None]
    tag: Any = None
    submitted_s: float = 0.0
    started: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class EncodeJob(Job):
    """Reads the source: the first job of a session of a model with an encoder."""

    source: list[int]


@dataclass(slots=True, eq=False, kw_only=True)
class FeedJob(Job):
    """Consumes tokens from `start` on, or None: from wherever the session is. No tokens: runs what is pending (a start
    token) for its output."""

    start: int | None
    tokens: list[int]
    outputs: OutputSpec
    collected: list[StepOutput] = field(default_factory=list)


@dataclass(slots=True, eq=False, kw_only=True)
class GenerateJob(Job):
    """Generates from `start` on. The engine may be at most `window` tokens ahead of what has been granted.

    choice: what is asked of the decoder, kept up to date between tokens. num_produced and parked are written by who
    drives the engine alone, num_granted by the event loop alone.
    """

    start: int | None
    decoding: Decoding
    window: int
    choice: Choice | None = None
    num_produced: int = 0
    num_granted: int = 0
    parked: bool = False


NO_TOKENS: list[int] = []
"""Every lane's list while there is nothing in it: a million idle sessions share one. Never changed in place."""
NO_JOBS: list[Job] = []
"""Likewise."""


@dataclass(slots=True, eq=False)
class Lane:
    """A session as its engine sees it. Once submitted, who drives the engine alone writes to it.

    Its lists are replaced, never changed in place: idle lanes share empty ones.

    position: target tokens consumed or generated. pending: tokens of the sequence that the state has not yet consumed
    (a start token, or the last token generated). next_logits: [V], what the state says comes next, when nothing is
    pending and it is known. inputs[done:]: what the job in hand still has to run, the first `num_pending` of
    which came from `pending`.
    """

    slot: Slot
    pending: list[int]
    position: int = 0
    next_logits: FloatRow | None = None
    jobs: list[Job] = field(default_factory=lambda: NO_JOBS)
    job: Job | None = None
    inputs: list[int] = field(default_factory=lambda: NO_TOKENS)
    done: int = 0
    num_pending: int = 0
    ticket: int = 0
    closed: bool = False

    @property
    def num_remaining(self) -> int:
        """Tokens that the job in hand still has to run."""
        return len(self.inputs) - self.done
