"""A session as values: everything that another server needs to resume it. Knows no format and no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.engine.decoding import Decoding, FinishReason
from service.engine.items import Item
from service.engine.jobs import OutputSpec
from service.engine.lane_state import LaneState
from service.engine.results import Searched, StepOutput
from service.sessions.policy import PLAIN, SessionPolicy


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
    policy: SessionPolicy = PLAIN
    last: FedBefore | GeneratedBefore | None = None
    marks: dict[int, LaneState] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """About what it takes as bytes: its tensors, and the answers that can be asked for again."""
        num_bytes = sum(lane.num_bytes for lane in (self.lane, *self.marks.values()))
        if isinstance(self.last, FedBefore):
            num_bytes += sum(
                8 * len(one.token_ids) + (0 if one.logits is None else one.logits.nbytes) for one in self.last.answer
            )
        elif self.last is not None:
            num_bytes += 8 * len(self.last.tokens)
        return num_bytes
