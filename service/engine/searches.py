"""Beam searches, and scores of given continuations: jobs that look ahead of their session's position.

Both work on copies of the session's state, in slots of their own. A search's beams are the rows of one group; each row
reads the state of its parent row. When the search ends, the session consumes the best hypothesis. Each target of a
score is fed to a lane of its own, which is a fork of the session's. Meanwhile the session's lane runs no other job. A
score changes the session only in that its pending tokens are run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import numpy as np

from service.engine.decoding import FloatArray, score
from service.engine.history import History
from service.engine.jobs import NO_TOKENS, Job, Lane, OutputKind, OutputSpec, Remainder, ScoreJob, SearchJob
from service.engine.last_tokens import LastTokens
from service.engine.results import LOGITS, Failed, Fed, Result, Scored, Searched, StepResult
from service.engine.scheduler import Group
from service.engine.stepper import ActiveFeed, Stepper
from service.errors import CarouselError, position_mismatch

_LOGITS = OutputSpec(OutputKind.LOGITS)
_NOTHING = OutputSpec(OutputKind.NONE)

CopyRow: TypeAlias = Callable[[int, list[int]], None]
"""Copies the state of a row of the arena to other rows."""


def begin_search(stepper: Stepper, history: History, lane: Lane, job: SearchJob) -> None:
    """Begins a search, or refuses it if its start position differs from the lane's."""
    if job.start is not None and job.start != lane.position:
        error = position_mismatch("generate.position", job.start, lane.position)
        stepper.answer(job, Failed(lane.position, error))
    else:
        ActiveSearch(stepper, lane, job, history.before(lane)).begin()


def begin_score(stepper: Stepper, copy_row: CopyRow, lane: Lane, job: ScoreJob) -> None:
    """Begins a score, or refuses it if its start position differs from the lane's."""
    if job.start is not None and job.start != lane.position:
        error = position_mismatch("score.position", job.start, lane.position)
        stepper.answer(job, Failed(lane.position, error))
    else:
        ActiveScore(stepper, lane, job, copy_row).begin()


class _LookingAhead(ABC):
    """An active job that first asks what comes next in its lane, with a feed as a part."""

    survives_cancel: ClassVar[bool] = False

    def __init__(self, stepper: Stepper, lane: Lane, job: Job) -> None:
        self._stepper = stepper
        self._lane = lane
        self.job = job

    def begin(self) -> None:
        """Asks for the next logits."""
        ActiveFeed(self._stepper, self._lane, self.job, [], _LOGITS, whole=self)

    def abandon(self, lane: Lane, error: CarouselError) -> None:
        """See `ActiveJob`."""
        self._stop()
        self._stepper.answer(self.job, Failed(lane.position, error))

    def unchain(self) -> None:  # noqa: B027  # few kinds have a chain
        """See `ActiveJob`. Does nothing: such a job has no chain, only the lane's queue."""

    def remainder(self, lane: Lane) -> Remainder | None:
        """See `ActiveJob`."""
        return Remainder(lane.pending)

    def part_ended(self, part: ActiveFeed, result: Result) -> None:
        """See `Whole`."""
        if part.lane is not self._lane:
            self._fork_ended(part, result)
        elif not isinstance(result, Fed):
            self._finish(result)
        elif not result.outputs:  # the feed of the best hypothesis; the first feed returns logits
            self._complete()
        else:
            self._lane.active = self
            logits = result.outputs[0].logits
            if logits is None:
                raise ValueError("a feed that asked for logits returned none")
            self._advance(logits[np.newaxis], [self._lane.slot.row])

    def take_group(self, group: Group, result: StepResult, begin: int) -> None:
        """See `GroupOwner`."""
        self._advance(result.row(slice(begin, begin + len(group.writes)), 0), group.writes)

    def fail_group(self, group: Group, error: CarouselError) -> None:
        """See `GroupOwner`."""
        if self._lane.active is self:
            self._stepper.abandon(self._lane, error)

    def _finish(self, result: Result) -> None:
        self._stepper.finish(self._lane, self.job, result)

    @abstractmethod
    def _advance(self, logits: FloatArray, rows: list[int]) -> None:
        """Continues with the next logits of some arena rows. logits: [K, V]; rows: [K]."""

    @abstractmethod
    def _complete(self) -> None:
        """Ends the job: the session has consumed what the job chose, or nothing had to be consumed."""

    @abstractmethod
    def _fork_ended(self, part: ActiveFeed, result: Result) -> None:
        """Handles the end of a part in a fork of the lane, done or failed."""

    @abstractmethod
    def _stop(self) -> None:
        """Removes the job's rows from the scheduler."""


class ActiveSearch(_LookingAhead):
    """An active beam search."""

    def __init__(self, stepper: Stepper, lane: Lane, job: SearchJob, before: LastTokens | None = None) -> None:
        super().__init__(stepper, lane, job)
        self._before = before
        self._search = job.search
        self._rows = [slot.row for slot in job.slots]
        self._group = Group(self, [], [], [], [], LOGITS, runs_on=True)

    def _advance(self, logits: FloatArray, rows: list[int]) -> None:
        step = self._search.advance(logits)
        if not step.is_done:
            tokens = step.tokens.tolist()
            reads = [rows[parent] for parent in step.parents.tolist()]
            contexts = [self._lane.context_row] * len(tokens)
            self._group = Group(self, reads, self._rows[: len(tokens)], contexts, tokens, LOGITS, runs_on=True)
            self._stepper.scheduler.add_group(self._group)
            return
        found = self._search.results()
        if found and found[0].tokens:
            ActiveFeed(self._stepper, self._lane, self.job, found[0].tokens, _NOTHING, whole=self)
        else:
            self._complete()

    def _complete(self) -> None:
        self._finish(Searched(self._lane.position, self._search.results(), self._before))

    def _fork_ended(self, part: ActiveFeed, result: Result) -> None:
        """Does nothing: a search has rows, and no lanes of its own."""

    def _stop(self) -> None:
        self._stepper.scheduler.remove(self._group)


class ActiveScore(_LookingAhead):
    """An active score. The first token of each target is scored in the session's lane, the others in forks of it."""

    def __init__(self, stepper: Stepper, lane: Lane, job: ScoreJob, copy_row: CopyRow) -> None:
        super().__init__(stepper, lane, job)
        self._copy_row = copy_row
        self._targets = job.targets
        self._scores: list[list[float]] = []
        self._parts: list[ActiveFeed] = []
        self._num_left = 0

    def _advance(self, logits: FloatArray, rows: list[int]) -> None:
        lane = self._lane
        longer = [index for index, target in enumerate(self._targets) if len(target) > 1]
        self._scores = [score(logits, np.array(target[:1])).tolist() for target in self._targets]
        self._num_left = len(longer)
        if not longer:
            self._complete()
            return
        slots = self.job.slots[: len(longer)]
        self._copy_row(lane.slot.row, [slot.row for slot in slots])
        for index, slot in zip(longer, slots, strict=True):
            fork = Lane(slot, NO_TOKENS, lane.position, forked_from=lane)
            fed, targets = self._targets[index][:-1], self._targets[index][1:]
            self._parts.append(
                ActiveFeed(self._stepper, fork, self.job, fed, _NOTHING, whole=self, index=index, targets=targets)
            )

    def _complete(self) -> None:
        self._finish(Scored(self._lane.position, self._scores))

    def _fork_ended(self, part: ActiveFeed, result: Result) -> None:
        if isinstance(result, Failed):
            if self._lane.active is self:
                self._stepper.abandon(self._lane, result.error)
            return
        self._scores[part.index] += part.scores
        self._num_left -= 1
        if not self._num_left:
            self._complete()

    def _stop(self) -> None:
        for part in self._parts:
            part.lane.active = None
            self._stepper.scheduler.remove(part)
