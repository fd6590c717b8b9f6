"""Beam searches, and scores of given continuations: jobs that look ahead of where their session is.

Both work on copies of its state, in slots of their own. A search's beams are rows of one group, whose state comes from
the rows that were their parents; when it is done the session consumes the best. A score's targets are lanes of their
own, fed from forks of the state. The session's lane is held meanwhile, and changes only in that what was pending is
run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from service.engine.arena import Slot
from service.engine.decoding import FloatArray, score
from service.engine.jobs import NO_TOKENS, FeedJob, Group, Lane, OutputKind, OutputSpec, ScoreJob, SearchJob
from service.engine.outcome import Outcome
from service.engine.results import Failed, Fed, Result, Scored, Searched
from service.engine.stepper import Stepper
from service.errors import CarouselError, position_mismatch

_LOGITS = OutputSpec(OutputKind.LOGITS)
_NOTHING = OutputSpec(OutputKind.NONE)


class Searches:
    """Carries out `SearchJob`s and `ScoreJob`s over a stepper's lanes. The thread that drives the engine alone.

    fork(row, rows): copies the state of a row of the arena to others; release(slot): takes a slot back.
    """

    def __init__(
        self, stepper: Stepper, fork: Callable[[int, list[int]], None], release: Callable[[Slot], None]
    ) -> None:
        self._stepper = stepper
        self._fork = fork
        self._release = release
        stepper.add(SearchJob, self)
        stepper.add(ScoreJob, self)

    def begin(self, lane: Lane, job: SearchJob | ScoreJob) -> None:
        """Asks what comes next."""
        job.lane = lane
        if job.start is not None and job.start != lane.position:
            field = "generate.position" if isinstance(job, SearchJob) else "score.position"
            self._finish(job, Failed(lane.position, position_mismatch(field, job.start, lane.position)))
            return
        self._stepper.begin_part(lane, FeedJob(reply=job.reply, start=None, tokens=[], outputs=_LOGITS, whole=job))

    def drop(self, lane: Lane, job: SearchJob | ScoreJob, error: CarouselError) -> None:
        """It was not begun."""
        job.lane = lane
        self._answer(job, Failed(lane.position, error))

    def abandon(self, lane: Lane, job: SearchJob | ScoreJob, error: CarouselError) -> None:
        """Its rows run no further."""
        if isinstance(job, SearchJob) and job.group is not None:
            self._stepper.scheduler.remove(job.group)
        elif isinstance(job, ScoreJob):
            for fork in job.lanes:
                self._stepper.scheduler.remove(fork)
                fork.job = None
        self._answer(job, Failed(lane.position, error))

    def part_ended(self, lane: Lane, part: FeedJob, result: Result) -> None:
        """What comes next is told, or a target scored, or the best hypothesis consumed."""
        job = part.whole
        assert isinstance(job, SearchJob | ScoreJob)  # noqa: S101  # made here
        if isinstance(job, ScoreJob) and lane is not job.lane:
            self._scored(job, part, result)
        elif isinstance(result, Failed):
            self._finish(job, result)
        elif isinstance(job, ScoreJob):
            lane.job = job
            self._fork_out(lane, job, _logits(result))
        elif part.tokens:
            self._finish(job, Searched(lane.position, job.search.results()))
        else:
            lane.job = job
            self._advance(job, _logits(result), [lane.slot.row])

    def stepped(self, group: Group, outcome: Outcome, begin: int) -> None:
        """The rows of a search's group were run: those of the batch from `begin` on."""
        job = group.owner
        assert isinstance(job, SearchJob)  # noqa: S101  # the caller has looked
        assert outcome.logits is not None  # noqa: S101  # the group has asked for them
        job.group = None
        self._advance(job, outcome.logits[begin : begin + len(group.writes), 0], group.writes)

    def _advance(self, job: SearchJob, logits: FloatArray, rows: list[int]) -> None:
        """Goes on from rows of the arena, given what comes next in each. logits: [K, V], rows: [K]."""
        lane = job.lane
        assert lane is not None  # noqa: S101  # set when it began
        step = job.search.advance(logits)
        if not step.is_done:
            tokens = step.tokens.tolist()
            job.group = Group(
                owner=job,
                reads=[rows[parent] for parent in step.parents.tolist()],
                writes=[slot.row for slot in job.slots[: len(tokens)]],
                contexts=[lane.context_row] * len(tokens),
                tokens=tokens,
                wants_logits=True,
            )
            self._stepper.scheduler.add("step", job.group, 1)
            return
        found = job.search.results()
        if found and found[0].tokens:
            best = FeedJob(reply=job.reply, start=None, tokens=found[0].tokens, outputs=_NOTHING, whole=job)
            self._stepper.begin_part(lane, best)
        else:
            self._finish(job, Searched(lane.position, found))

    def _fork_out(self, lane: Lane, job: ScoreJob, logits: FloatArray) -> None:
        """Scores every target's first token, and sets a lane on each to score the rest. logits: [1, V]."""
        longer = [index for index, target in enumerate(job.targets) if len(target) > 1]
        job.scores = [score(logits, np.array(target[:1])).tolist() for target in job.targets]
        job.num_left = len(longer)
        if not longer:
            self._finish(job, Scored(lane.position, job.scores))
            return
        slots = job.slots[: len(longer)]
        self._fork(lane.slot.row, [slot.row for slot in slots])
        job.lanes = [Lane(slot, NO_TOKENS, lane.position, forked_from=lane) for slot in slots]
        for index, fork in zip(longer, job.lanes, strict=True):
            target = job.targets[index]
            part = FeedJob(
                reply=job.reply,
                start=None,
                tokens=target[:-1],
                outputs=_NOTHING,
                targets=target[1:],
                whole=job,
                index=index,
            )
            self._stepper.begin_part(fork, part)

    def _scored(self, job: ScoreJob, part: FeedJob, result: Result) -> None:
        lane = job.lane
        assert lane is not None  # noqa: S101  # set when it began
        if isinstance(result, Failed):
            self._stepper.abandon(lane, result.error)
            return
        job.scores[part.index] += part.scores
        job.num_left -= 1
        if not job.num_left:
            self._finish(job, Scored(lane.position, job.scores))

    def _finish(self, job: SearchJob | ScoreJob, result: Result) -> None:
        """Answers a job, and lets its lane go on."""
        assert job.lane is not None  # noqa: S101  # set when it began
        job.lane.job = None
        self._answer(job, result)
        self._stepper.begin_next(job.lane)

    def _answer(self, job: SearchJob | ScoreJob, result: Result) -> None:
        for slot in job.slots:
            self._release(slot)
        self._stepper.results.append((job, result))


def _logits(result: Result) -> FloatArray:
    """[1, V]: what a feed told comes next."""
    assert isinstance(result, Fed)  # noqa: S101  # the caller has looked
    logits = result.outputs[0].logits
    assert logits is not None  # noqa: S101  # they were asked for
    return logits[np.newaxis]
