"""Carries batches out: runs, commits, reports. Whoever drives the engine calls it, one thread at a time."""

from __future__ import annotations

from itertools import chain
from time import perf_counter

from service.engine.arena import Arena
from service.engine.bursts import Bursts, Driver
from service.engine.costs import Costs
from service.engine.frames import Frames
from service.engine.jobs import FrameJob, GenerateJob, begun
from service.engine.limits import EngineLimits
from service.engine.outcome import Outcome
from service.engine.runner import Runner
from service.engine.scheduler import Batch, Scheduler
from service.engine.searches import Searches
from service.engine.stepper import Stepper
from service.engine.transfer import read_lanes
from service.engine.wants import wants_of
from service.errors import EngineError
from service.observer import BatchReport, EngineObserver
from service.repository.bundle import Bundle

_FRAME_SHARE = 0.25
"""Of what other batches may cost on the event loop: a frame is one message however many rows it has, so that there is
little to do beside running it, and the event loop had better read the next one meanwhile."""


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
            max_rows=bundle.variants[variant].step_spec.max_rows or limits.max_batch_rows,
            max_tokens=limits.max_batch_tokens,
            max_chunk=min(limits.max_chunk_tokens, max_chunk),
        )
        self.stepper = Stepper(
            self.scheduler,
            special.eos_id,
            has_readout=self._runner.has_readout,
            has_start=special.bos_id is not None,
            gives_values=bundle.manifest.step.values is not None,
            read=lambda lane: read_lanes(arena, [lane])[0],
        )
        output_size = bundle.manifest.output_size
        self.frames = Frames(self.stepper, output_size)
        self._searches = Searches(self.stepper, self._runner.fork, arena.release)
        self._bursts = Bursts(self._runner, self.stepper, observer, output_size)
        self._takes_bursts = bundle.manifest.step.tokens is not None
        self._costs = Costs()

    def warm_up(self) -> None:
        """Runs every batch size and measures it."""
        for kind, num_rows, seconds in self._runner.warm_up(self.scheduler.max_rows):
            self._costs.record(kind, num_rows, 1, seconds)

    def is_small(self, batch: Batch) -> bool:
        """Whether a batch is known to cost little, and leaves nothing behind that would go on by itself."""
        goes_on = any(
            isinstance(lane.job, GenerateJob) or lane.num_remaining > width
            for lane, width in zip(batch.lanes, batch.widths, strict=True)
        )
        goes_on = goes_on or any(not isinstance(group.owner, FrameJob) for group in batch.groups)
        limit_s = self._limits.inline_s * (_FRAME_SHARE if batch.groups else 1.0)
        return not goes_on and self._costs.is_within(batch, limit_s)

    def run(self, batch: Batch) -> None:
        """Runs a batch once, and commits what it told."""
        began = perf_counter()
        try:
            ran = self._runner.run(batch, wants_of(batch, keeps_logits=self.stepper.keeps_logits))
        except Exception as error:  # ONNX Runtime raises classes of its own; whatever it was, the state is untouched
            self._fail(batch, error)
            return
        committing = perf_counter()
        jobs = [lane.job for lane in batch.lanes]
        queue_s = begun(chain(jobs, (group.owner for group in batch.groups)), began)
        self._commit(batch, ran.outcome)
        ended = perf_counter()
        self._costs.record(batch.kind, batch.num_rows, batch.width, ended - began)
        report = BatchReport(
            batch.kind,
            batch.num_rows,
            batch.num_tokens,
            ran.capacity,
            queue_s,
            ran.gather_s,
            ran.run_s,
            ended - committing,
        )
        self._observer.batch_ran(report)
        if self._observer.is_tracing:
            owners = {id(job.whole or job): job.whole or job for job in jobs if job is not None}
            owners |= {id(group.owner): group.owner for group in batch.groups}
            self._observer.batch_traced([job.tag for job in owners.values()], report)

    def run_on(self, batch: Batch, driver: Driver) -> None:
        """Runs a batch, and when it can go in a burst goes on until the driver is called, or it must stop."""
        if not (self._takes_bursts and self._bursts.fits(batch)):
            self.run(batch)
            return
        lanes, error = self._bursts.run(batch.lanes, driver)
        if error is not None:
            self._fail(Batch("step", lanes, [1] * len(lanes), [], len(lanes)), error)

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
