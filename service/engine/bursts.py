"""Bursts: generations that go on together, step after step, for as long as nothing else is to be done.

Their state goes from run to run and stays out of the arena, and their tokens are committed many at a time, so that a
step costs little more than its run and, where it is not the likeliest token that is taken, the choice. Rules:

1. A token that ends a generation, or fills its window, is committed as any other batch's is: what a session gets never
   depends on whether it went in a burst.
2. Where a generation ends, its state is written to the arena as it is then. Its row runs on idle, until the burst ends.
3. A burst ends when the driver is called, but not in its first half of a millisecond: a burst costs something to set
   up, and when many come and go all would be spent on that.
"""

from __future__ import annotations

from math import nan
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.decoding import Choice, IntArray, choose_batch
from service.engine.jobs import GenerateJob, Lane, begun
from service.engine.outcome import Outcome
from service.engine.runner import Burst, Runner
from service.engine.scheduler import Batch
from service.engine.stepper import Stepper
from service.engine.wants import Wants
from service.observer import BatchReport, EngineObserver

_LEAST_S = 0.001
"""How long a burst goes on although its driver is called."""
_LEAST_ROOM = 2
"""Tokens that every window must have room for."""


class Driver(Protocol):
    """Who drives, as a burst sees it."""

    def is_called(self) -> bool:
        """Whether there is something else to do."""

    def is_listening(self) -> bool:
        """Whether what is told now is taken at once. What is not waits, and more may be told with it."""

    def tell(self) -> None:
        """Passes on what came of jobs."""


class Bursts:
    """Runs bursts. The thread that drives the engine alone."""

    def __init__(self, runner: Runner, stepper: Stepper, observer: EngineObserver, output_size: int) -> None:
        self._runner = runner
        self._stepper = stepper
        self._observer = observer
        self._output_size = output_size

    def fits(self, batch: Batch) -> bool:
        """Whether all of a batch can go in a burst, and nothing else waits."""
        if batch.kind != "step" or batch.groups or batch.width > 1 or len(self._stepper.scheduler):
            return False
        return all(isinstance(lane.job, GenerateJob) and lane.job.room >= _LEAST_ROOM for lane in batch.lanes)

    def run(self, lanes: list[Lane], driver: Driver) -> tuple[list[Lane], Exception | None]:
        """Steps lanes until the driver is called, or they must stop. Every token is committed then.

        Returns the lanes that go on, and what a run raised, if one did: their state is as it was before that run.
        """
        progress = _Progress(lanes, self._runner.burst(lanes), self._stepper, self._output_size)
        tags = [lane.job.tag for lane in lanes if lane.job is not None]
        error = None
        began = perf_counter()
        queue_s = begun((lane.job for lane in lanes), began)
        ready_at_s = began + _LEAST_S
        while not progress.must_stop:
            num_rows = len(progress.active)
            began = perf_counter()
            try:
                outcome = progress.burst.step(progress.tokens, progress.wants)
            except Exception as raised:  # ONNX Runtime raises classes of its own
                error = raised
                break
            committing = perf_counter()
            progress.take(outcome)
            if driver.is_listening():
                progress.commit()
                driver.tell()
            ended = perf_counter()
            times = committing - began, ended - committing
            report = BatchReport("step", num_rows, num_rows, progress.burst.capacity, queue_s, 0.0, *times)
            self._observer.batch_ran(report)
            if self._observer.is_tracing:
                self._observer.batch_traced(tags, report)
            queue_s = ()
            if ended >= ready_at_s and driver.is_called():
                break
        return progress.end(), error


class _Progress:
    """How far a burst's lanes are.

    active: places of those that go on; tokens: [B] what comes next in each row; burst: their state; wants: what their
    runs have to tell.
    """

    def __init__(self, lanes: list[Lane], burst: Burst, stepper: Stepper, output_size: int) -> None:
        jobs = [_generation(lane) for lane in lanes]
        self.active = list(range(len(lanes)))
        self.tokens: IntArray = np.array([lane.inputs[0] for lane in lanes])
        self.burst = burst
        self._lanes = lanes
        self._stepper = stepper
        self._steps: list[list[int]] = []
        self._choosers = [place for place, job in enumerate(jobs) if not job.takes_likeliest]
        self._scores: dict[int, list[float]] = {
            place: [] for place in self._choosers if jobs[place].decoding.log_probabilities
        }
        self.wants = Wants(logits=stepper.keeps_logits or bool(self._choosers))
        self._is_end = np.zeros(output_size, np.bool_)
        self._is_end[_ends(jobs, stepper.eos_id)] = True
        self._left = np.array([job.decoding.max_tokens - job.num_produced for job in jobs])
        self._room = min(job.room for job in jobs)

    @property
    def must_stop(self) -> bool:
        """Whether a window is full, or most rows run on idle."""
        return self._room <= 0 or 2 * len(self.active) < len(self._lanes)

    def take(self, outcome: Outcome) -> None:
        """Takes in what a step told."""
        assert outcome.next_tokens is not None  # noqa: S101  # of one token a row they are always told
        self.tokens = outcome.next_tokens[: len(self._lanes), 0].astype(np.int64)
        scores = self._choose(outcome) if self._choosers else {}
        self._left -= 1
        ends = self._is_end[self.tokens] | (self._left == 0)
        if ends.any():
            self._end_rows(ends, scores, outcome)
        for place in self._choosers:
            _choice(self._lanes[place]).advance(int(self.tokens[place]))
            if place in self._scores:
                self._scores[place].append(scores[place])
        self._steps.append(self.tokens.tolist())
        self._room -= 1
        if not self._room:
            self.commit()

    def commit(self) -> None:
        """Commits what was taken in."""
        if self._steps and self.active:
            columns = list(zip(*self._steps, strict=True))
            for place in self.active:
                self._commit(place, list(columns[place]))
            self._room = min(_generation(self._lanes[place]).room for place in self.active)
        self._steps.clear()

    def _commit(self, place: int, token_ids: list[int]) -> None:
        scores = self._scores.get(place)
        if scores is not None:
            self._scores[place] = []
        self._stepper.generated(self._lanes[place], token_ids, scores)

    def _choose(self, outcome: Outcome) -> dict[int, float]:
        """Puts the tokens of those that do not take the likeliest in its place. Returns their log-probabilities, NaN
        where they were not asked for."""
        assert outcome.logits is not None  # noqa: S101  # they were wanted
        choices = [_choice(self._lanes[place]) for place in self._choosers]
        chosen, scores = choose_batch(outcome.logits[self._choosers, 0], choices)
        self.tokens[self._choosers] = chosen
        return dict(zip(self._choosers, scores.tolist(), strict=True))

    def end(self) -> list[Lane]:
        """Commits everything, writes the state to the arena, and lets the lanes that go on wait for their next batch.
        Returns them."""
        self.commit()
        self.burst.save(self.active)
        lanes = [self._lanes[place] for place in self.active]
        for lane in lanes:
            self._stepper.go_on(lane)
        return lanes

    def _end_rows(self, ends: NDArray[np.bool_], scores: dict[int, float], outcome: Outcome) -> None:
        ended = [place for place in self.active if ends[place]]
        self.active = [place for place in self.active if not ends[place]]
        self._choosers = [place for place in self._choosers if not ends[place]]
        self.burst.save(ended)
        for place in ended:
            if self._steps:
                self._commit(place, [step[place] for step in self._steps])
            token = int(self.tokens[place])
            self._stepper.chose(self._lanes[place], token, scores.get(place, nan), outcome, place)


def _choice(lane: Lane) -> Choice:
    choice = _generation(lane).choice
    assert choice is not None  # noqa: S101  # made when the generation began
    return choice


def _generation(lane: Lane) -> GenerateJob:
    assert isinstance(lane.job, GenerateJob)  # noqa: S101  # `fits` has looked
    return lane.job


def _ends(jobs: list[GenerateJob], eos_id: int | None) -> list[int]:
    """Tokens that may end one of the generations."""
    ends = set().union(*(job.decoding.stop_ids for job in jobs))
    return sorted(ends if eos_id is None else ends | {eos_id})
