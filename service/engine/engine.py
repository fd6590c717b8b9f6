"""One model's engine: schedule, run, commit.

It owns the arena and every lane and takes at once what is ready: while a batch runs, the next one gathers by itself
(continuous, or cellular, batching: Gao et al., EuroSys 2018). What a batch gave is answered in one go.

Where a batch runs is decided by what it costs. Handing it to a thread and back costs about as much as a small batch
itself, so a batch that is known to be small, and after which nothing goes on by itself, runs on the event loop. A
larger one, a chunk of a long feed, a step of a generation run on the engine's thread, which then drives until nothing
is ready: batch after batch on the event loop would starve the streams. Both run the same code, so both give the same
bits. Rules:

1. One side drives at a time, and only the driver touches lanes, scheduler, stepper and the arena's rows.
2. The event loop hands over by queueing a batch, the thread by a call on the event loop: only the event loop changes
   who drives.
3. The event loop's side, `open`, `submit`, `cancel`, `close`, `grant`, only ever appends to the inbox.

Nothing here knows sessions, gRPC, or asyncio beyond the loop's `call_soon` and `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from time import perf_counter

from service.engine.arena import Arena
from service.engine.costs import Costs
from service.engine.jobs import NO_TOKENS, Generated, GenerateJob, Job, Lane, Result
from service.engine.runner import Runner
from service.engine.scheduler import Batch, Scheduler
from service.engine.stepper import Stepper
from service.errors import EngineError, QueueFullError, RequestCancelledError, TooManySessionsError
from service.observer import BatchReport, EngineObserver
from service.repository.bundle import Bundle

_LONE_STREAK = 16
"""Feeds in a row by one lane after which it is taken to be alone."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one engine is allowed.

    num_slots: sessions at once; max_waiting: requests admitted and not yet answered; max_batch_rows: sessions in a
    batch; max_batch_tokens: rows times width of one; max_chunk_tokens: tokens of one session in one; inline_s: the
    most that a batch may cost, in seconds, to run on the event loop.
    """

    num_slots: int = 10_000
    max_waiting: int = 16_384
    max_batch_rows: int = 256
    max_batch_tokens: int = 256
    max_chunk_tokens: int = 32
    inline_s: float = 0.0005


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """slots_used: sessions that have a slot; num_waiting: requests admitted and not yet answered; num_inline,
    num_threaded: batches run on the event loop, and on the thread."""

    slots_used: int
    num_waiting: int
    num_inline: int
    num_threaded: int


class Engine:
    """Runs one bundle. Except where said, call from the event loop's thread."""

    def __init__(
        self,
        bundle: Bundle,
        limits: EngineLimits,
        observer: EngineObserver,
        loop: asyncio.AbstractEventLoop,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self._limits = limits
        self._observer = observer
        self._loop = loop
        self._on_crash = on_crash
        bos_id = bundle.manifest.special_tokens.bos_id
        self._first_pending = NO_TOKENS if bos_id is None else [bos_id]
        self._arena = Arena(bundle.manifest, limits.num_slots)
        self._runner = Runner(bundle, self._arena)
        self._scheduler = Scheduler(
            max_rows=limits.max_batch_rows,
            max_tokens=limits.max_batch_tokens,
            max_chunk=limits.max_chunk_tokens,
        )
        self._stepper = Stepper(self._scheduler, bundle.manifest.special_tokens.eos_id)
        self._costs = Costs()
        self._inbox: deque[Callable[[], None]] = deque()
        self._after: list[Callable[[], None]] = []
        self._num_waiting = 0
        self._num_inline = 0
        self._num_threaded = 0
        self._is_pump_due = False
        self._latest_lane: Lane | None = None
        self._streak = 0
        self._is_thread_driving = False
        self._handed_over: SimpleQueue[Batch | None] = SimpleQueue()
        name = f"engine-{bundle.model}-{bundle.version}"
        self._thread = threading.Thread(target=self._drive, name=name, daemon=True)

    def start(self) -> None:
        """Warms every batch size up and measures it, then starts the thread. Blocks while it warms up; any thread."""
        for kind, num_rows, seconds in self._runner.warm_up(self._limits.max_batch_rows):
            self._costs.record(kind, num_rows, 1, seconds)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after what it drives. What waits then is never answered. Blocks; any thread."""
        self._handed_over.put(None)
        self._thread.join()

    @property
    def statistics(self) -> EngineStatistics:
        """A view of the engine as it is now. Any thread."""
        return EngineStatistics(self._arena.num_used, self._num_waiting, self._num_inline, self._num_threaded)

    def open(self) -> Lane:
        """A lane with a zeroed slot. Raises TooManySessionsError when every slot is taken."""
        slot = self._arena.acquire()
        if slot is None:
            raise TooManySessionsError(
                f"all {self._limits.num_slots} session slots are taken: close a session, or try again later",
                retry_delay_s=1.0,
                max_sessions=self._limits.num_slots,
            )
        return Lane(slot, self._first_pending)

    def submit(self, lane: Lane, *jobs: Job) -> None:
        """Queues jobs behind the lane's others, all or none. Raises QueueFullError past `max_waiting`."""
        if self._num_waiting + len(jobs) > self._limits.max_waiting:
            raise QueueFullError(
                f"{self._num_waiting} requests wait already, the most this model's queue holds: try again later",
                retry_delay_s=0.1,
                max_waiting=self._limits.max_waiting,
            )
        self._num_waiting += len(jobs)
        now_s = perf_counter()
        for job in jobs:
            job.submitted_s = now_s
            self._ask(partial(self._stepper.submit, lane, job))

    def hasten(self, lane: Lane) -> None:
        """Runs a small batch now, and answers it before returning, when nobody but `lane` has fed anything lately.

        Waiting for the event loop's next turn would only gather company that does not come.
        """
        if lane is not self._latest_lane:
            self._latest_lane, self._streak = lane, 0
            return
        self._streak += 1
        if self._streak > _LONE_STREAK and len(self._inbox) == 1 and not len(self._scheduler):
            self._pump()

    def cancel(self, lane: Lane, then: Callable[[int], None]) -> None:
        """Ends the lane's jobs at a token boundary, answering each; then calls `then` on the event loop with their
        number."""

        def act() -> None:
            count = self._stepper.cancel(lane, RequestCancelledError("the request was cancelled"))
            self._after.append(partial(then, count))

        self._ask(act)

    def close(self, lane: Lane, then: Callable[[], None] | None = None) -> None:
        """Ends the lane's jobs, answering each, and frees its slot before the next batch.

        Then calls `then` on the event loop. A second call frees nothing twice.
        """

        def act() -> None:
            if not lane.closed:
                lane.closed = True
                self._stepper.abandon(lane, RequestCancelledError("the session was closed"))
                self._arena.release(lane.slot)
            if then is not None:
                self._after.append(then)

        self._ask(act)

    def grant(self, lane: Lane, job: GenerateJob, num_tokens: int) -> None:
        """Tells that `num_tokens` more of a generation have left the server."""
        job.num_granted += num_tokens
        if job.parked:
            self._ask(partial(self._stepper.resume, lane, job))

    def _ask(self, act: Callable[[], None]) -> None:
        self._inbox.append(act)
        if not self._is_pump_due and not self._is_thread_driving:
            self._is_pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """One turn of the event loop's driving: what came in, one batch, its answers."""
        self._is_pump_due = False
        if self._is_thread_driving or not (self._inbox or len(self._scheduler)):
            return
        try:
            self._take_in()
            batch = self._scheduler.next_batch()
            if batch is not None and not self._is_for_the_loop(batch):
                self._is_thread_driving = True
                self._deliver(*self._gathered())
                self._handed_over.put(batch)
                return
            if batch is not None:
                self._run(batch)
                self._num_inline += 1
        except BaseException as error:
            self._on_crash(error)
            raise
        self._deliver(*self._gathered())
        if (len(self._scheduler) or self._inbox) and not self._is_pump_due:
            self._is_pump_due = True
            self._loop.call_soon(self._pump)

    def _is_for_the_loop(self, batch: Batch) -> bool:
        """Whether a batch is small and leaves nothing behind that would go on by itself."""
        goes_on = any(
            isinstance(lane.job, GenerateJob) or lane.num_remaining > width
            for lane, width in zip(batch.lanes, batch.widths, strict=True)
        )
        return not goes_on and self._costs.is_within(batch, self._limits.inline_s)

    def _drive(self) -> None:
        """The thread: runs what it is handed, and goes on until nothing is ready."""
        try:
            while (batch := self._handed_over.get()) is not None:
                following: Batch | None = batch
                while following is not None:
                    self._run(following)
                    self._num_threaded += 1
                    self._take_in()
                    following = self._scheduler.next_batch()
                    self._loop.call_soon_threadsafe(self._deliver, *self._gathered())
                self._loop.call_soon_threadsafe(self._take_back)
        except BaseException as error:  # a bug of ours: nobody would be answered any more, so the process must know
            self._loop.call_soon_threadsafe(self._on_crash, error)
            raise

    def _take_back(self) -> None:
        self._is_thread_driving = False
        if len(self._scheduler) or self._inbox:
            self._pump()

    def _take_in(self) -> None:
        """Carries out what the event loop asked for."""
        inbox = self._inbox
        while inbox:
            inbox.popleft()()

    def _run(self, batch: Batch) -> None:
        began = perf_counter()
        try:
            ran = self._runner.run(batch)
        except Exception as error:  # ONNX Runtime raises classes of its own; whatever it was, the state is untouched
            self._observer.batch_failed(batch.kind, len(batch.lanes), error)
            for lane in batch.lanes:
                self._stepper.abandon(lane, EngineError("the model failed to run; the session is as it was before"))
            return
        committing = perf_counter()
        queue_s = []
        chosen: dict[int, tuple[int, float]] = {}
        if ran.logits is not None:
            chosen = self._stepper.choose_together(batch.lanes, batch.widths, ran.logits)
        for index, lane in enumerate(batch.lanes):
            job = lane.job
            if job is not None and not job.started:
                job.started = True
                queue_s.append(began - job.submitted_s)
            if ran.logits is None:
                self._stepper.encoded(lane)
            else:
                self._stepper.stepped(lane, batch.widths[index], ran.logits[index], chosen.get(index))
        ended = perf_counter()
        self._costs.record(batch.kind, len(batch.lanes), max(batch.widths), ended - began)
        self._observer.batch_ran(
            BatchReport(
                batch.kind,
                len(batch.lanes),
                sum(batch.widths),
                ran.capacity,
                tuple(queue_s),
                ran.gather_s,
                ran.run_s,
                ended - committing,
            )
        )

    def _gathered(self) -> tuple[list[tuple[Job, Result]], list[Callable[[], None]]]:
        """The answers that wait, and what is to be called after them; both are emptied."""
        gathered = self._stepper.results, self._after
        self._stepper.results, self._after = [], []
        return gathered

    def _deliver(self, results: list[tuple[Job, Result]], after: list[Callable[[], None]]) -> None:
        """Answers on the event loop. One answer's failure is reported and takes no other down."""
        for job, result in results:
            if not (isinstance(result, Generated) and result.finish_reason is None):
                self._num_waiting -= 1
            try:
                job.reply(job, result)
            except Exception as error:  # a bug at the edge must not cost a neighbour its answer
                self._loop.call_exception_handler({"message": "answering a request failed", "exception": error})
        for call in after:
            call()
        if results:
            self._observer.queue_changed(self._num_waiting)
