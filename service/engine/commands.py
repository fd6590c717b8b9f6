"""The commands of an engine: every request to it is one of these. The core's inbox holds them until its next step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from service.engine.arena import Slot
from service.engine.jobs import GenerateJob, Job, Lane, StepBatchJob
from service.engine.results import LaneState
from service.errors import CarouselError


class Submit(NamedTuple):
    """Queues a job behind the lane's other jobs."""

    lane: Lane
    job: Job


class SubmitStepBatch(NamedTuple):
    """Queues a job of many lanes behind the other jobs of each lane."""

    job: StepBatchJob


class Resume(NamedTuple):
    """Continues a generation that waits for a grant, if its window has room again."""

    lane: Lane
    job: GenerateJob


class Cancel(NamedTuple):
    """Ends the lane's jobs at a token boundary, except an active encode job and a step batch whose row has run. Answers
    each with `error`. then: called with their number."""

    lane: Lane
    error: CarouselError
    then: Callable[[int], None]


class Close(NamedTuple):
    """Ends the lane's jobs, answers each with `error`, and frees the lane's slot. Does nothing on a closed lane.

    then: called in both cases.
    """

    lane: Lane
    error: CarouselError
    then: Callable[[], None] | None


class Read(NamedTuple):
    """Copies the state of lanes. then: called with the result of `results.read_lanes`."""

    lanes: Sequence[Lane]
    then: Callable[[list[LaneState | None]], None]


class Write(NamedTuple):
    """Copies a saved state into an idle lane."""

    lane: Lane
    state: LaneState


class ReleaseForks(NamedTuple):
    """Frees slots that no job owns, such as those of a refused job."""

    slots: Sequence[Slot]


Command: TypeAlias = Submit | SubmitStepBatch | Resume | Cancel | Close | Read | Write | ReleaseForks
