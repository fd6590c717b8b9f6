"""What an engine answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from service.engine.beam import Hypothesis
from service.engine.decoding import FinishReason, FloatArray, FloatRow
from service.engine.items import Item
from service.engine.jobs import Job, StepBatchJob
from service.engine.lane_state import LaneState
from service.errors import CarouselError


class StepOutput(NamedTuple):
    """What the model says comes next at `position`. logits: [V], for `OutputKind.LOGITS` and `OutputKind.VALUES` alone.
    trace: the outputs of the trace graph for the step, [units] or [source] each, by name."""

    position: int
    token_ids: list[int]
    log_probabilities: list[float] | None = None
    logits: FloatRow | None = None
    trace: dict[str, FloatRow] | None = None


class Encoded(NamedTuple):
    """Answers an `EncodeJob`."""

    position: int


class Fed(NamedTuple):
    """Answers a `FeedJob`. position: after it. mark: the lane's state after it, when it was wanted."""

    position: int
    outputs: list[StepOutput]
    mark: LaneState | None = None


class Generated(NamedTuple):
    """One of the answers to a `GenerateJob`: tokens, the end, or both. position: after it.

    log_probabilities: one for each token, when they were asked for.
    """

    position: int
    token_ids: Sequence[Item]
    log_probabilities: list[float] | None
    finish_reason: FinishReason | None


class Searched(NamedTuple):
    """Answers a `SearchJob`. position: after the first of the hypotheses, which are the best first."""

    position: int
    hypotheses: list[Hypothesis]


class Scored(NamedTuple):
    """Answers a `ScoreJob`. log_probabilities: of each target's tokens. position: where the session is, as before."""

    position: int
    log_probabilities: list[list[float]]


class Stepped(NamedTuple):
    """Answers a `StepBatchJob`: columns in the order of its lanes, N of them, 0 where one failed.

    positions: [N] after it. token_ids: [N * k] the k most likely next tokens, k = 1 unless more were asked for.
    log_probabilities: [N * k], for `OutputKind.TOP_K`. logits: [N, V], for `OutputKind.LOGITS`. errors: by place.
    """

    positions: list[int]
    token_ids: list[int]
    log_probabilities: list[float]
    logits: FloatArray | None
    errors: list[tuple[int, CarouselError]]


class Failed(NamedTuple):
    """Answers any job that was not done, or not to its end. position: where the session stands."""

    position: int
    error: CarouselError


Result = Encoded | Fed | Generated | Searched | Scored | Failed
"""Of a job of one session."""


class Produced(NamedTuple):
    """What came of commands and batches, in order. entries: a job and a result for its `reply`, or None and a function
    to call. num_ended: jobs that got their last result; num_partial: results that are not the last of their jobs;
    num_freed: forks that were freed."""

    entries: list[tuple[Job | None, Any]]
    num_ended: int
    num_partial: int
    num_freed: int


def all_failed(job: StepBatchJob, error: CarouselError) -> Stepped:
    """The answer to a step batch none of whose rows could be run."""
    size = len(job.lanes) * job.width
    errors = [(place, error) for place in range(len(job.lanes))]
    scores = [0.0] * size if job.outputs.top_k else []
    return Stepped([lane.position for lane in job.lanes], [0] * size, scores, None, errors)
