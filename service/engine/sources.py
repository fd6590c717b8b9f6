"""A source in hand: what the encoder reads before a lane's first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from service.engine.jobs import NO_TOKENS, EncodeJob, Item, Lane, Rest
from service.engine.results import Encoded, Failed
from service.engine.scheduler import RowJob
from service.engine.step_result import NEXT_TOKEN, StepResult
from service.engine.stepper import Stepper
from service.errors import CarouselError


class ActiveEncode(RowJob):
    """A source that the encoder is to read."""

    __slots__ = ("_source", "_stepper")

    survives_cancel: ClassVar[bool] = True

    def __init__(self, stepper: Stepper, lane: Lane, job: EncodeJob) -> None:
        self._stepper = stepper
        self._source = job.source
        self.lane, self.job = lane, job
        self.inputs, self.done, self.num_pending = NO_TOKENS, 0, 0
        self.ticket, self.fetch, self.runs_on = 0, NEXT_TOKEN, False
        lane.active = self
        stepper.scheduler.add("encoder", self, len(job.source))

    @property
    def source(self) -> Sequence[Item]:
        """See `RowJob`."""
        return self._source

    def take(self, result: StepResult, row: int, width: int) -> None:
        """See `RowJob`."""
        self._stepper.finish(self.lane, self.job, Encoded(self.lane.position))

    def abandon(self, lane: Lane, error: CarouselError) -> None:
        """See `ActiveJob`."""
        self._stepper.scheduler.remove(self)
        self._stepper.answer(self.job, Failed(lane.position, error))

    def rest(self, lane: Lane) -> Rest | None:
        """See `ActiveJob`: the state is not the session's yet."""
        return None
