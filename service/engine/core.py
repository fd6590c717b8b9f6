"""The core of an engine: takes commands, schedules, runs and commits one batch at a time, and collects results.

It has no thread and no event loop: its owner calls `step`, one caller at a time. Rules:

1. Every request to the engine is a command in `inbox`. A step first executes them, unless a batch was deferred.
2. The callbacks of commands and the results of jobs come out in one order: results that a lane produced before a read
   come before the read's callback, and results that it produced after the read come after.
3. An exception affects only the command, or the row of a batch, that raised it. Its job receives an EngineError; after
   a failed row, so do the jobs queued behind it in the lane. The lane continues from its current state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from time import perf_counter

from service.engine import commands
from service.engine.apart import run_apart
from service.engine.arena import Arena, Slot
from service.engine.bursts import Bursts, Driver
from service.engine.generations import choose_together, resume_generation
from service.engine.history import History
from service.engine.jobs import Job, Lane, StepBatchJob
from service.engine.kinds import add_kinds
from service.engine.limits import EngineLimits, batch_tokens
from service.engine.results import LOGITS, NEXT_TOKEN, Failed, LaneState, Produced, all_failed, read_lanes, write_lane
from service.engine.runner import Ran, Runner
from service.engine.scheduler import Batch, Costs, Scheduler
from service.engine.step_batches import submit_step_batch
from service.engine.stepper import Stepper
from service.errors import CarouselError, EngineError
from service.observer import BatchReport, EngineObserver
from service.repository.bundle import Bundle

_STEP_BATCH_SHARE = 0.25
"""Factor on the time limit for batches on the event loop, for a step batch. A step batch is one message, however many
rows it has, so almost all of its time is the run itself, and meanwhile the event loop could read the next message."""


class Progress(Enum):
    """What a step did. DEFERRED: the next batch is not small; it is kept for the next step."""

    IDLE = "idle"
    RAN = "ran"
    DEFERRED = "deferred"


class EngineCore:
    """Runs one variant of a bundle over an arena.

    on_fault: called with each exception of a command, but not if beginning a job raised it: the observer gets these.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        limits: EngineLimits,
        observer: EngineObserver,
        on_fault: Callable[[Exception], None],
    ) -> None:
        manifest = bundle.manifest
        step_spec = bundle.variants[variant].step_spec
        self._limits = limits
        self._observer = observer
        self._on_fault = on_fault
        self.arena = arena = Arena(manifest, limits.num_slots + limits.num_forks, bundle.first_values)
        self._runner = Runner(bundle, variant, arena)
        self._takes_one_step = step_spec.lengths is None
        self.scheduler = Scheduler(
            max_rows=step_spec.max_rows or limits.max_batch_rows,
            max_tokens=limits.max_batch_tokens or batch_tokens(None),
            max_chunk=limits.max_chunk(None if self._takes_one_step else step_spec.max_chunk),
        )
        self.stepper = stepper = Stepper(
            self.scheduler,
            manifest.special_tokens.eos_id,
            has_readout=self._runner.has_readout,
            has_start=manifest.special_tokens.bos_id is not None,
            gives_values=manifest.step.values is not None,
            read=lambda lane: read_lanes(arena, [lane])[0],
            release=arena.release,
            on_fault=partial(observer.batch_failed, "step"),
        )
        self.take_results: Callable[[], Produced] = stepper.take_results
        add_kinds(stepper, self._runner.copy_row, History(manifest.history, stepper.read))
        self._bursts = Bursts(arena, self._runner.step_graph, stepper, observer, manifest.output_size)
        self._output_size = manifest.output_size
        self._takes_bursts = manifest.step.tokens is not None
        self._costs = Costs()
        self._deferred: Batch | None = None
        self.inbox: deque[commands.Command] = deque()
        self.num_closed = 0
        """Number of closed lanes; their slots are free."""
        self._handlers: dict[type[commands.Command], Callable[..., object]] = {
            commands.Submit: stepper.submit,
            commands.SubmitStepBatch: self._submit_step_batch,
            commands.Resume: resume_generation,
            commands.Cancel: self._cancel,
            commands.Close: self._close,
            commands.Read: self._read,
            commands.Write: self._write,
            commands.ReleaseForks: self._release,
        }

    @property
    def has_work(self) -> bool:
        """Whether a step would find a command or a batch."""
        return bool(self.inbox or self._deferred is not None or self.scheduler.num_queued)

    def warm_up(self) -> None:
        """Runs every batch size and records its time."""
        for kind, num_rows, seconds in self._runner.warm_up(self.scheduler.max_rows):
            self._costs.record(kind, num_rows, 1, seconds)
            if kind == "step" and self._limits.max_batch_tokens is None:
                self.scheduler.bound(num_rows, seconds, is_step_by_step=self._takes_one_step)

    def step(self, *, small_only: bool = False, driver: Driver | None = None) -> Progress:
        """Executes the commands and schedules a batch, unless one was deferred, then runs and commits it.

        small_only: defers a batch that is not known to cost little, or whose jobs need another batch at once.
        driver: if given, a batch of generations may continue as a burst until it has other work.
        """
        batch = self._deferred
        if batch is None:  # commands wait until a deferred batch has run, because they may close its lanes
            if self.inbox:
                self.take_in()
            batch = self.scheduler.next_batch()
        if batch is None:
            return Progress.IDLE
        if small_only and not self._is_small(batch):
            self._deferred = batch
            return Progress.DEFERRED
        self._deferred = None
        if driver is not None and self._takes_bursts and self._try_burst(batch, driver):
            return Progress.RAN
        began = perf_counter()
        fetch = LOGITS if self.stepper.keeps_logits else NEXT_TOKEN
        for job in batch.jobs:
            if job.fetch is not NEXT_TOKEN:
                fetch |= job.fetch
        for group in batch.groups:
            fetch |= group.fetch
        commit = partial(self._commit, has_choices=fetch.has_choices)
        try:
            ran = self._runner.run(batch, fetch)
        except Exception as error:  # ONNX Runtime has exception classes of its own; the state is unchanged in any case
            run_apart(batch, error, partial(self._runner.run, fetch=fetch), commit, self._fail)
        else:
            commit(batch, ran, began)
        return Progress.RAN

    def take_in(self) -> None:
        """Executes the commands of the inbox. A command that raises does not affect the others."""
        inbox, stepper = self.inbox, self.stepper
        while inbox:
            command = inbox.popleft()
            try:
                self._handlers[type(command)](*command)
            except Exception as error:
                self._command_failed(command, error)
            if stepper.due:
                stepper.settle()

    def refuse_all(self, error: CarouselError) -> None:
        """Answers every job with `error`: those that wait now, and all later ones."""
        stepper = self.stepper
        self.take_in()
        self._handlers[commands.Submit] = lambda lane, job: stepper.answer(job, Failed(lane.position, error))
        self._handlers[commands.SubmitStepBatch] = lambda job: stepper.answer(job, all_failed(job, error))
        batch = self._deferred or self.scheduler.next_batch()
        self._deferred = None
        while batch is not None or stepper.parked:
            if batch is not None:
                self._abandon(batch, error)
            for generation in list(stepper.parked):
                stepper.abandon(generation.lane, error)
            stepper.settle()
            batch = self.scheduler.next_batch()

    def _commit(self, batch: Batch, ran: Ran, began: float, *, has_choices: bool) -> None:
        """Passes each row of a result to its job, and reports the batch. A row that raises fails alone."""
        committing = perf_counter()
        stepper, result = self.stepper, ran.result
        if has_choices:
            result.chosen = choose_together(result, batch.jobs, batch.widths)
        waited = []
        row = 0
        for job, width in zip(batch.jobs, batch.widths, strict=True):
            request = job.job
            if not request.is_started:
                request.is_started = True
                waited.append(began - request.submitted_s)
            if job.lane.active is job:  # an earlier row of the same compound job may have ended this one
                try:
                    job.take(result, row, width)
                except Exception as error:
                    self._observer.batch_failed(batch.kind, 1, error)
                    stepper.abandon(job.lane, _commit_error())
            row += 1
        for group in batch.groups:
            request = group.owner.job
            if not request.is_started:
                request.is_started = True
                waited.append(began - request.submitted_s)
            try:
                group.owner.take_group(group, result, row)
            except Exception as error:
                self._observer.batch_failed(batch.kind, group.num_rows, error)
                group.owner.fail_group(group, _commit_error())
            row += len(group.tokens)
        if stepper.due:
            stepper.settle()
        ended = perf_counter()
        self._costs.record(batch.kind, batch.num_rows, batch.width, ended - began)
        times = ran.gather_s, ran.run_s, ended - committing
        report = BatchReport(batch.kind, batch.num_rows, batch.num_tokens, ran.capacity, tuple(waited), *times)
        self._observer.batch_ran(report)
        if self._observer.is_tracing:
            owners: dict[int, Job] = {id(job.job): job.job for job in batch.jobs}
            owners |= {id(group.owner.job): group.owner.job for group in batch.groups}
            self._observer.batch_traced([job.tag for job in owners.values()], report)

    def _fail(self, batch: Batch, error: Exception) -> None:
        """Answers the jobs of a batch whose run raised `error`. That run changed nothing, but a lane may have
        moved in an earlier run of its job."""
        self._observer.batch_failed(batch.kind, batch.num_rows, error)
        text = "the model failed to run; this run changed nothing: read the session's position before you continue"
        self._abandon(batch, EngineError(text))
        self.stepper.settle()

    def _abandon(self, batch: Batch, error: CarouselError) -> None:
        for job in batch.jobs:
            if job.lane.active is job:
                self.stepper.abandon(job.lane, error)
        for group in batch.groups:
            group.owner.fail_group(group, error)

    def _try_burst(self, batch: Batch, driver: Driver) -> bool:
        generations = self._bursts.take_eligible(batch)
        if not generations:
            return False
        left, error = self._bursts.run(generations, driver)
        if error is not None:
            size = len(left)
            self._fail(Batch("step", list(left), [1] * size, [], size, 1, size, runs_on=True), error)
        self.stepper.settle()
        return True

    def _is_small(self, batch: Batch) -> bool:
        """Whether a batch is known to cost little, and its jobs need no other batch directly after it."""
        if batch.runs_on:
            return False
        limit_s = self._limits.inline_s
        if batch.groups:
            limit_s *= _STEP_BATCH_SHARE
            if any(group.runs_on for group in batch.groups):
                return False
        seconds = self._costs.estimate(batch.kind, batch.num_rows, batch.width)
        return seconds is not None and seconds <= limit_s

    def _command_failed(self, command: commands.Command, error: Exception) -> None:
        """Reports that a command raised, and answers whoever waits for the command."""
        if isinstance(command, commands.Submit):
            self.stepper.begin_failed(command.lane, command.job, error)
            return
        self._on_fault(error)
        entries = self.stepper.entries
        match command:
            case commands.SubmitStepBatch(job):
                held = [lane for lane in job.lanes if lane.active is not None and lane.active.job is job]
                for lane in held:
                    self.stepper.abandon(lane, _commit_error())
                if not held:
                    self.stepper.answer(job, all_failed(job, _commit_error()))
            case commands.Write(lane, _):
                lane.refusal = EngineError("the session's state could not be restored: open a new session")
            case commands.Read(lanes, then):  # the reader tries again, or continues without the state
                entries.append((None, partial(then, [None] * len(lanes))))
            case commands.Cancel(_, _, then):
                entries.append((None, partial(then, 0)))
            case commands.Close(_, _, then) if then is not None:
                entries.append((None, then))

    def _submit_step_batch(self, job: StepBatchJob) -> None:
        submit_step_batch(self.stepper, job, self._output_size)

    def _cancel(self, lane: Lane, error: CarouselError, then: Callable[[int], None]) -> None:
        count = self.stepper.cancel(lane, error)
        self.stepper.entries.append((None, partial(then, count)))

    def _close(self, lane: Lane, error: CarouselError, then: Callable[[], None] | None) -> None:
        if not lane.is_closed:
            lane.is_closed = True
            lane.refusal = error
            self.stepper.abandon(lane, error)
            self.arena.release(lane.slot)
            self.num_closed += 1
        if then is not None:
            self.stepper.entries.append((None, then))

    def _read(self, lanes: Sequence[Lane], then: Callable[[list[LaneState | None]], None]) -> None:
        self.stepper.entries.append((None, partial(then, read_lanes(self.arena, lanes))))

    def _write(self, lane: Lane, state: LaneState) -> None:
        write_lane(self.arena, lane, state)

    def _release(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            self.arena.release(slot)


def _commit_error() -> CarouselError:
    return EngineError(
        "the server failed to process the model's result: read the session's position before you continue"
    )
