"""A session as values: all that is needed to go on with it elsewhere. Knows no format and no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.engine.decoding import Decoding, FinishReason
from service.engine.items import Item
from service.engine.jobs import OutputSpec
from service.engine.lane_state import LaneState
from service.engine.results import Searched, StepOutput
from service.sessions.terms import PLAIN, Terms


@dataclass(frozen=True, slots=True)
class FedBefore:
    """The last feed and its answer. start: where it began."""

    start: int
    tokens: Sequence[Item]
    outputs: OutputSpec
    answer: list[StepOutput]


@dataclass(frozen=True, slots=True)
class GeneratedBefore:
    """The last generation, which is at its end or not: see `Generation`."""

    start: int
    decoding: Decoding
    num_dropped: int
    tokens: Sequence[Item]
    log_probabilities: list[float] | None
    finish_reason: FinishReason | None
    found: Searched | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """manifest_digest: of the bundle, in hexadecimal. opened_at: Unix seconds. state_names: of `lane.states`, in order.
    last: what can be answered again. marks: by position, oldest first."""

    session_id: str
    model: str
    version: int
    variant: str
    manifest_digest: str
    opened_at: float
    state_names: list[str]
    lane: LaneState
    terms: Terms = PLAIN
    last: FedBefore | GeneratedBefore | None = None
    marks: dict[int, LaneState] = field(default_factory=dict)
