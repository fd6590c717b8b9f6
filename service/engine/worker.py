"""Carries batches out: chooses, runs, commits, reports. Whoever drives the engine calls it, one thread at a time.

Generations that take the likeliest token, and are alone, go in bursts: step after step over the same rows, whose state
stays out of the arena until something else is to be done. Each step then costs little more than its run. A burst is cut
at once by anything that comes in, and before a token that ends one of its generations, or its window, is committed by
itself, so that what a session gets never depends on whether it went in a burst.
"""

from __future__ import annotations

from time import perf_counter
from typing import Protocol

import numpy as np

from service.engine.arena import Arena
from service.engine.costs import Costs
from service.engine.frames import Frames
from service.engine.jobs import FrameJob, GenerateJob, Job
from service.engine.limits import EngineLimits
from service.engine.outcome import Outcome
from service.engine.runner import Burst, Runner
from service.engine.scheduler import Batch, Scheduler
from service.engine.searches import Searches
from service.engine.stepper import Stepper
from service.engine.wants import Wants, wants_of
from service.errors import EngineError
from service.observer import BatchReport, EngineObserver
from service.repository.bundle import Bundle

_LEAST_BURST = 2
"""Tokens that every generation must have room for, for a burst to be worth its while."""


class Driver(Protocol):
    """Who drives, as a burst sees it."""

    def is_called(self) -> bool:
        """Whether there is something else to do."""

    def is_listening(self) -> bool:
        """Whether what is told now is taken at once. What is not waits, and more may be told with it."""

    def tell(self) -> None:
        """Passes on what came of jobs."""


class Worker:
    """Runs one variant of a bundle over an arena."""

    def __init__(
        self, bundle: Bundle, variant: str, limits: EngineLimits, observer: EngineObserver, arena: Arena
    ) -> None:
        special = bundle.manifest.special_tokens
        max_chunk = bundle.variants[variant].step_spec.max_chunk or limits.max_chunk_tokens
        self._limits = limits
        self._observer = observer
        self._runner = Runner(bundle, variant, arena)
        self.scheduler = Scheduler(
            max_rows=limits.max_batch_rows,
            max_tokens=limits.max_batch_tokens,
            max_chunk=min(limits.max_chunk_tokens, max_chunk),
        )
        self.stepper = Stepper(
            self.scheduler,
            special.eos_id,
            has_readout=self._runner.has_readout,
            has_start=special.bos_id is not None,
        )
        self._vocabulary_size = bundle.manifest.target_vocabulary.size
        self.frames = Frames(self.stepper, self._vocabulary_size)
        self._searches = Searches(self.stepper, self._runner.fork, arena.release)
        self._costs = Costs()

    def warm_up(self) -> None:
        """Runs every batch size and measures it."""
        for kind, num_rows, seconds in self._runner.warm_up(self._limits.max_batch_rows):
            self._costs.record(kind, num_rows, 1, seconds)

    def is_small(self, batch: Batch) -> bool:
        """Whether a batch is known to cost little, and leaves nothing behind that would go on by itself."""
        goes_on = any(
            isinstance(lane.job, GenerateJob) or lane.num_remaining > width
            for lane, width in zip(batch.lanes, batch.widths, strict=True)
        )
        goes_on = goes_on or any(not isinstance(group.owner, FrameJob) for group in batch.groups)
        return not goes_on and self._costs.is_within(batch, self._limits.inline_s)

    def run(self, batch: Batch) -> None:
        """Runs a batch once, and commits what it told."""
        began = perf_counter()
        try:
            ran = self._runner.run(batch, wants_of(batch, keeps_logits=self.stepper.keeps_logits))
        except Exception as error:  # ONNX Runtime raises classes of its own; whatever it was, the state is untouched
            self._fail(batch, error)
            return
        committing = perf_counter()
        queue_s = _begun(batch, began)
        self._commit(batch, ran.outcome)
        ended = perf_counter()
        self._costs.record(batch.kind, batch.num_rows, batch.width, ended - began)
        self._observer.batch_ran(
            BatchReport(
                batch.kind,
                batch.num_rows,
                batch.num_tokens,
                ran.capacity,
                queue_s,
                ran.gather_s,
                ran.run_s,
                ended - committing,
            )
        )

    def run_on(self, batch: Batch, driver: Driver) -> None:
        """Runs a batch, and when it can go in a burst goes on until the driver is called, or it must stop."""
        jobs = [lane.job for lane in batch.lanes]
        generations = [job for job in jobs if isinstance(job, GenerateJob) and job.takes_likeliest]
        can_burst = batch.kind == "step" and not batch.groups and len(generations) == len(jobs)
        if not can_burst or len(self.scheduler) or _room(generations) < _LEAST_BURST:
            self.run(batch)
            return
        burst = self._runner.burst(batch.lanes)
        error: Exception | None = None
        last: Outcome | None = None
        try:
            last = self._step_on(batch, generations, burst, driver)
        except Exception as raised:  # as in `run`; the steps before it are committed
            error = raised
        burst.end()
        if last is not None:
            self.stepper.stepped(batch, last)
            return
        for lane in batch.lanes:
            self.stepper.go_on(lane)
        if error is not None:
            self._fail(batch, error)

    def _step_on(self, batch: Batch, generations: list[GenerateJob], burst: Burst, driver: Driver) -> Outcome | None:
        """Steps until it must stop. Returns what the last step told, when that is not committed yet."""
        is_end = np.zeros(self._vocabulary_size, np.bool_)
        is_end[_ends(generations, self.stepper.eos_id)] = True
        wants = Wants(logits=self.stepper.keeps_logits)
        count = batch.num_rows
        tokens = np.array([lane.inputs[0] for lane in batch.lanes])
        room = _room(generations)
        queue_s = _begun(batch, perf_counter())
        steps: list[list[int]] = []
        try:
            while True:
                began = perf_counter()
                outcome = burst.step(tokens, wants)
                committing = perf_counter()
                assert outcome.next_tokens is not None  # noqa: S101  # of one token a row they are always told
                tokens = outcome.next_tokens[:count, 0]
                must_stop = bool(is_end[tokens].any())
                if not must_stop:
                    steps.append(tokens.tolist())
                    room -= 1
                    if not room or driver.is_listening():
                        self._commit_steps(batch, steps)
                        driver.tell()
                        room = _room(generations)
                times = committing - began, perf_counter() - committing
                self._observer.batch_ran(BatchReport("step", count, count, burst.capacity, queue_s, 0.0, *times))
                queue_s = ()
                if must_stop:
                    return outcome
                if not room or driver.is_called():
                    return None
        finally:
            self._commit_steps(batch, steps)

    def _commit_steps(self, batch: Batch, steps: list[list[int]]) -> None:
        """Commits what a burst has told: [steps, B] tokens, emptied."""
        if steps:
            for lane, token_ids in zip(batch.lanes, zip(*steps, strict=True), strict=True):
                self.stepper.generated(lane, list(token_ids))
            steps.clear()

    def _commit(self, batch: Batch, outcome: Outcome | None) -> None:
        if outcome is None:
            for lane in batch.lanes:
                self.stepper.encoded(lane)
            return
        begin = len(batch.lanes)
        self.stepper.stepped(batch, outcome)
        for group in batch.groups:
            num_rows = len(group.tokens)
            if isinstance(group.owner, FrameJob):
                self.frames.stepped(group, outcome, begin)
            else:
                self._searches.stepped(group, outcome, begin)
            begin += num_rows

    def _fail(self, batch: Batch, error: Exception) -> None:
        self._observer.batch_failed(batch.kind, batch.num_rows, error)
        told = EngineError("the model failed to run; the session is as it was before")
        for lane in batch.lanes:
            self.stepper.abandon(lane, told)
        for group in batch.groups:
            owner = group.owner
            lanes = list(group.lanes) if isinstance(owner, FrameJob) else [owner.lane]
            for one in lanes:
                if one is not None:
                    self.stepper.abandon(one, told)


def _room(generations: list[GenerateJob]) -> int:
    return min(job.room for job in generations)


def _ends(generations: list[GenerateJob], eos_id: int | None) -> list[int]:
    """Tokens that may end one of the generations."""
    ends = set().union(*(job.decoding.stop_ids for job in generations))
    return sorted(ends if eos_id is None else ends | {eos_id})


def _begun(batch: Batch, now_s: float) -> tuple[float, ...]:
    """How long each of the jobs that begin in a batch has waited, in seconds."""
    waited = []
    jobs: list[Job | None] = [lane.job for lane in batch.lanes]
    jobs += [group.owner for group in batch.groups]
    for job in jobs:
        if job is not None:
            whole = job.whole or job
            if not whole.started:
                whole.started = True
                waited.append(now_s - whole.submitted_s)
    return tuple(waited)
