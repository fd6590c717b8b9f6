"""An engine: decides which thread runs the core's steps, and delivers results on the event loop.

While a batch runs, the next one gathers (continuous, or cellular, batching: Gao et al., EuroSys 2018). The cost of a
batch decides where it runs. Handing a batch to a thread and back costs about as much as a small batch. So a small
batch, which no other batch follows at once, runs on the event loop. A larger batch, a chunk of a long feed and a step
of a generation run on the engine's thread, which then continues until nothing is ready: so many batches on the event
loop would starve the streams. Both threads call the same core, so both give the same bits. Rules:

1. One thread at a time drives: only that thread calls the core.
2. The event loop hands over with a message to the thread, the thread with a call on the event loop. Only the event loop
   changes who drives.
3. `submit`, `cancel`, `close` and all other requests only append commands; `open` and `acquire_forks` take slots, too.
4. Results and callbacks are delivered on the event loop, in the order in which the core produced them. If one raises,
   the event loop's exception handler receives the exception, and the others are delivered.
5. Tokens of unfinished generations may wait: writing them costs more than choosing them. After each delivery the event
   loop is free for other work for a while; tokens chosen in that time are delivered together.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from queue import SimpleQueue
from time import perf_counter

from service.engine import commands, switching
from service.engine.arena import Array, Slot
from service.engine.core import EngineCore, Progress
from service.engine.jobs import NO_TOKENS, GenerateJob, Item, Job, Lane, StepBatchJob
from service.engine.limits import EngineLimits, EngineStatistics
from service.engine.results import LaneState, Produced
from service.errors import CarouselError, RequestCancelledError, ShuttingDownError
from service.observer import EngineObserver
from service.repository.bundle import Bundle
from service.repository.manifest import BASE_VARIANT

_LONE_STREAK = 16
"""Number of consecutive feeds by one lane after which the engine takes it to be the only active one."""
_PAUSE = 2.0
"""Pause after a delivery of tokens, as a multiple of the event loop's time for that delivery."""


class Engine:
    """Runs one variant of a bundle. All methods are for the event loop's thread, except where stated.

    inline_only: every batch runs on the event loop, without a thread. session_bytes: a session's state and context.
    """

    def __init__(
        self,
        bundle: Bundle,
        limits: EngineLimits,
        observer: EngineObserver,
        loop: asyncio.AbstractEventLoop,
        on_crash: Callable[[BaseException], None],
        *,
        variant: str = BASE_VARIANT,
        inline_only: bool = False,
    ) -> None:
        self._limits = limits
        self._loop, self._on_crash = loop, on_crash
        bos_id = bundle.manifest.special_tokens.bos_id
        self._first_pending: list[Item] = NO_TOKENS if bos_id is None else [bos_id]
        self._starts_with_source = bundle.manifest.start == "last_of_source"
        self._core = EngineCore(bundle, variant, limits, observer, self._report)
        self._inbox = self._core.inbox
        self.session_bytes = self._core.arena.row_bytes
        self._num_opened = self._num_unanswered = self._num_forks = self._num_inline = self._num_threaded = 0
        self._is_pump_due = self._is_delivery_due = self._is_delivering = False
        self._latest_lane: Lane | None = None
        self._streak = 0
        self._produced: deque[Produced] = deque()
        self._can_deliver_at_s = 0.0
        self._is_inline_only = inline_only
        self._is_thread_driving = self._is_stopping = False
        self._handed_over: SimpleQueue[bool] = SimpleQueue()
        name = f"engine-{bundle.model}-{bundle.version}-{variant}"
        self._thread = threading.Thread(target=self._drive, name=name, daemon=True)

    def start(self) -> None:
        """Runs and measures every batch size, then starts the thread. Blocks meanwhile; any thread may call it."""
        self._core.warm_up()
        if not self._is_inline_only:
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its current batch. After that, the event loop answers every waiting job and every later
        one with a ShuttingDownError. Blocks until the thread has ended; any thread may call it."""
        self._is_stopping = True
        if self._thread.is_alive():
            self._handed_over.put(False)
            self._thread.join()
        with suppress(RuntimeError):  # the event loop is closed, so no caller waits for an answer
            self._loop.call_soon_threadsafe(self._refuse_all)

    @property
    def statistics(self) -> EngineStatistics:
        """The engine's present counts. Any thread may read it."""
        return EngineStatistics(
            slots_used=self._num_opened - self._core.num_closed,
            forks_used=self._num_forks,
            num_unanswered=self._num_unanswered,
            num_inline=self._num_inline,
            num_threaded=self._num_threaded,
            is_stopped=self._is_stopping,
        )

    def open(self, source: Sequence[Item] = (), given: Mapping[int, Array] | None = None) -> Lane:
        """Returns a lane with a new slot. source: what the session will encode; given: see `Arena.acquire`.
        Raises NoSlotError when every slot is in use."""
        is_full = self._num_opened - self._core.num_closed >= self._limits.num_slots
        slot = None if is_full else self._core.arena.acquire(given)
        if slot is None:
            raise self._limits.no_slot()
        self._num_opened += 1
        pending = list(source[-1:]) if self._starts_with_source else self._first_pending
        return Lane(slot, pending)

    def acquire_forks(self, count: int) -> list[Slot]:
        """Acquires slots for a `SearchJob` or a `ScoreJob` that is submitted next. The job's answer frees them.

        Raises QueueFullError when fewer slots are free.
        """
        slots: list[Slot] = []
        if self._num_forks + count <= self._limits.num_forks:
            slots = [slot for slot in (self._core.arena.acquire() for _ in range(count)) if slot is not None]
        if len(slots) < count:
            self._ask(commands.ReleaseForks(slots))
            raise self._limits.no_fork(self._num_forks)
        self._num_forks += count
        return slots

    def submit(self, lane: Lane, *jobs: Job) -> None:
        """Queues jobs behind the lane's others, all or none. Raises QueueFullError past `max_waiting`, and then frees
        the jobs' forks."""
        if self._num_unanswered + len(jobs) > self._limits.max_waiting:
            for job in jobs:
                self._num_forks -= len(job.slots)
                self._ask(commands.ReleaseForks(job.slots))
            raise self._limits.queue_full(self._num_unanswered)
        self._num_unanswered += len(jobs)
        now_s = perf_counter()
        for job in jobs:
            job.submitted_s = now_s
            self._inbox.append(commands.Submit(lane, job))
        if not self._is_pump_due and not self._is_thread_driving:
            self._is_pump_due = True
            # not in the next turn but in the one after it, so that requests read in the next turn join the batch
            self._loop.call_soon(self._loop.call_soon, self._pump)

    def submit_step_batch(self, job: StepBatchJob) -> None:
        """Queues a step batch behind the jobs of all its lanes. Raises QueueFullError past `max_waiting`."""
        if self._num_unanswered >= self._limits.max_waiting:
            raise self._limits.queue_full(self._num_unanswered)
        self._num_unanswered += 1
        job.submitted_s = perf_counter()
        self._ask(commands.SubmitStepBatch(job))

    def run_inline_if_lone(self, lane: Lane) -> None:
        """Runs a small batch now, and answers it before returning, when only `lane` has fed anything lately. In that
        case no other request would join the batch in the event loop's next turn."""
        if lane is not self._latest_lane:
            self._latest_lane, self._streak = lane, 0
            return
        self._streak += 1
        if self._streak > _LONE_STREAK and len(self._inbox) == 1 and not self._core.scheduler.num_queued:
            self._pump()

    def cancel(self, lane: Lane, then: Callable[[int], None]) -> None:
        """Ends the lane's jobs at a token boundary, except an active encode job and a step batch whose row has run.
        Answers each with RequestCancelledError, then calls `then` on the event loop with their number."""
        self._ask(commands.Cancel(lane, RequestCancelledError("the request was cancelled"), then))

    def close(self, lane: Lane, then: Callable[[], None] | None = None, error: CarouselError | None = None) -> None:
        """Ends the lane's jobs and frees its slot before the next batch, or after it if that was deferred. Then calls
        `then`, on a closed lane nothing else. error: the answer to the jobs, RequestCancelledError by default."""
        self._ask(commands.Close(lane, error or RequestCancelledError("the session was closed"), then))

    def read(self, lanes: Sequence[Lane], then: Callable[[list[LaneState | None]], None]) -> None:
        """Copies lanes' state between two batches, then calls `then` on the event loop, with None for a lane that is
        closed, or whose feed or source has run in part. All results that a lane produced before the copy are delivered
        before this call, all that it produces afterwards are delivered after it."""
        self._ask(commands.Read(lanes, then))

    def write(self, lane: Lane, state: LaneState) -> None:
        """Copies a saved state into an idle lane. Later jobs find it there. If the arrays do not have this model's
        shapes, the lane answers every later job with an EngineError."""
        self._ask(commands.Write(lane, state))

    def grant(self, lane: Lane, job: GenerateJob, num_tokens: int) -> None:
        """Reports that `num_tokens` more tokens of a generation have left the server, which opens its window."""
        job.num_granted += num_tokens
        if job.is_parked:
            self._ask(commands.Resume(lane, job))

    def has_other_work(self) -> bool:
        """See `bursts.Driver`."""
        return bool(self._inbox or self._core.scheduler.num_queued or self._is_stopping)

    def can_deliver(self) -> bool:
        """See `bursts.Driver`."""
        return not self._is_delivery_due and perf_counter() >= self._can_deliver_at_s

    def deliver(self) -> None:
        """See `bursts.Driver`. Hands results from the engine's thread to the event loop. Tokens of unfinished
        generations wait until `can_deliver`, unless there is another result, which must not wait."""
        stepper = self._core.stepper
        if stepper.entries and (len(stepper.entries) > stepper.num_partial or self.can_deliver()):
            self._produced.append(self._core.take_results())
        if self._produced and not self._is_delivery_due:
            self._is_delivery_due = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _ask(self, command: commands.Command) -> None:
        self._inbox.append(command)
        self._call_pump()

    def _call_pump(self) -> None:
        if not self._is_pump_due and not self._is_thread_driving:
            self._is_pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Drives for one turn of the event loop: runs a step and delivers its results."""
        self._is_pump_due = False
        core = self._core
        if self._is_thread_driving or not (self._inbox or core.scheduler.num_queued):
            return
        try:
            progress = core.step(small_only=not self._is_inline_only)
        except BaseException as error:
            self._on_crash(error)
            raise
        if progress is Progress.RAN:
            self._num_inline += 1
        if core.stepper.entries:
            self._produced.append(core.take_results())
        if progress is Progress.DEFERRED:
            self._is_thread_driving = True
            switching.thread_drives()
            self._handed_over.put(True)
        if self._produced:
            self._deliver()
        if self._inbox or core.scheduler.num_queued:
            self._call_pump()

    def _drive(self) -> None:
        """Runs on the engine's thread: on each hand-over, drives until nothing is ready."""
        try:
            while self._handed_over.get():
                while self._core.step(driver=self) is Progress.RAN:
                    self._num_threaded += 1
                    self.deliver()
                    if self._is_stopping:
                        break
                self._produced.append(self._core.take_results())
                self._loop.call_soon_threadsafe(self._take_back)
        except BaseException as error:  # a bug here: no job would be answered any more, so the process must learn of it
            self._loop.call_soon_threadsafe(self._on_crash, error)
            raise

    def _take_back(self) -> None:
        self._is_thread_driving = False
        switching.thread_stops()
        self._deliver()
        if self._core.has_work:
            self._pump()

    def _deliver(self) -> None:
        """Delivers everything produced so far. On the event loop."""
        self._is_delivery_due = False  # first, so that results produced from now on request another delivery
        if self._is_delivering:  # a reply has caused a step: the running delivery delivers its results, after its own
            return
        self._is_delivering = True
        produced = self._produced
        began_s = perf_counter()
        has_tokens = False
        try:
            while produced:
                entries, num_ended, num_partial, num_freed = produced.popleft()
                for job, result in entries:
                    try:
                        if job is None:
                            result()
                        else:
                            job.reply(job, result)
                    except Exception as error:  # a bug in one reply must not keep the others from being delivered
                        self._report(error)
                self._num_unanswered -= num_ended
                self._num_forks -= num_freed
                has_tokens = has_tokens or num_partial > 0
        finally:
            self._is_delivering = False
        if has_tokens:
            self._can_deliver_at_s = inf
            self._loop.call_soon(self._pause_delivery, began_s)

    def _pause_delivery(self, began_s: float) -> None:
        """Sets when the next tokens are delivered. Runs when the streams have begun to write the last ones."""
        now_s = perf_counter()
        self._can_deliver_at_s = now_s + _PAUSE * (now_s - began_s)

    def _refuse_all(self) -> None:
        """Answers everything that waits, and all later jobs, on the event loop. Called after the thread has ended."""
        self._core.refuse_all(ShuttingDownError("the model was unloaded: open the session on another server"))
        self._produced.append(self._core.take_results())
        if self._is_thread_driving:  # a batch was handed over after the thread had ended
            self._is_thread_driving = False
            switching.thread_stops()
        self._is_inline_only = True
        self._deliver()

    def _report(self, error: Exception) -> None:
        """Reports an exception of a command or a callback to the event loop. Any thread may call it."""
        context = {"message": "a command or a callback of the engine failed", "exception": error}
        self._loop.call_soon_threadsafe(self._loop.call_exception_handler, context)
