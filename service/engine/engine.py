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
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from time import perf_counter

from service.engine.arena import Arena, Slot
from service.engine.items import Item
from service.engine.jobs import NO_TOKENS, FrameJob, GenerateJob, Job, Lane, ScoreJob, SearchJob
from service.engine.lane_state import LaneState
from service.engine.limits import EngineLimits, EngineStatistics
from service.engine.outgoing import Outgoing, goes_on
from service.engine.scheduler import Batch
from service.engine.transfer import read_lanes, write_lane
from service.engine.worker import Worker
from service.errors import CarouselError, NoSlotError, QueueFullError, RequestCancelledError
from service.observer import EngineObserver
from service.repository.bundle import Bundle
from service.repository.manifest import BASE_VARIANT

_LONE_STREAK = 16
"""Feeds in a row by one lane after which it is taken to be alone."""


class Engine:
    """Runs one variant of a bundle. Except where said, call from the event loop's thread. session_bytes: of the state
    and context of one session."""

    def __init__(
        self,
        bundle: Bundle,
        limits: EngineLimits,
        observer: EngineObserver,
        loop: asyncio.AbstractEventLoop,
        on_crash: Callable[[BaseException], None],
        *,
        variant: str = BASE_VARIANT,
    ) -> None:
        self._limits = limits
        self._observer = observer
        self._loop = loop
        self._on_crash = on_crash
        bos_id = bundle.manifest.special_tokens.bos_id
        self._first_pending: list[Item] = NO_TOKENS if bos_id is None else [bos_id]
        self._starts_with_source = bundle.manifest.start == "last_of_source"
        self._arena = Arena(bundle.manifest, limits.num_slots + limits.num_forks)
        self.session_bytes = self._arena.row_bytes
        self._worker = Worker(bundle, variant, limits, observer, self._arena)
        self._scheduler = self._worker.scheduler
        self._stepper = self._worker.stepper
        self._inbox: deque[Callable[[], None]] = deque()
        self._after: list[Callable[[], None]] = []
        self._outgoing = Outgoing(loop, self._ended)
        self._num_waiting = 0
        self._num_forks = 0
        self._num_inline = 0
        self._num_threaded = 0
        self._is_pump_due = False
        self._latest_lane: Lane | None = None
        self._streak = 0
        self._is_thread_driving = False
        self._handed_over: SimpleQueue[Batch | None] = SimpleQueue()
        name = f"engine-{bundle.model}-{bundle.version}-{variant}"
        self._thread = threading.Thread(target=self._drive, name=name, daemon=True)

    def start(self) -> None:
        """Warms every batch size up and measures it, then starts the thread. Blocks while it warms up; any thread."""
        self._worker.warm_up()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after what it drives. What waits then is never answered. Blocks; any thread."""
        self._handed_over.put(None)
        self._thread.join()

    @property
    def statistics(self) -> EngineStatistics:
        """A view of the engine as it is now. Any thread."""
        return EngineStatistics(
            self._arena.num_used - self._num_forks,
            self._num_forks,
            self._num_waiting,
            self._num_inline,
            self._num_threaded,
        )

    def open(self, source: Sequence[Item] = ()) -> Lane:
        """A lane with a zeroed slot. source: what it is to read. Raises NoSlotError when every slot is taken."""
        is_full = self._arena.num_used - self._num_forks >= self._limits.num_slots
        slot = None if is_full else self._arena.acquire()
        if slot is None:
            raise NoSlotError(
                f"all {self._limits.num_slots} session slots are taken: close a session, or try again later",
                retry_delay_s=1.0,
                max_sessions=self._limits.num_slots,
            )
        return Lane(slot, list(source[-1:]) if self._starts_with_source else self._first_pending)

    def fork(self, count: int) -> list[Slot]:
        """Slots for a `SearchJob` or a `ScoreJob` that is submitted next; its answer frees them.

        Raises QueueFullError when there are not as many.
        """
        slots: list[Slot] = []
        if self._num_forks + count <= self._limits.num_forks:
            slots = [slot for slot in (self._arena.acquire() for _ in range(count)) if slot is not None]
        if len(slots) < count:
            self._ask(partial(self._release, slots))
            raise QueueFullError(
                f"{self._num_forks} beams and targets are at work, and the most is {self._limits.num_forks}: try again"
                " later",
                retry_delay_s=0.1,
                max_forks=self._limits.num_forks,
            )
        self._num_forks += count
        return slots

    def submit(self, lane: Lane, *jobs: Job) -> None:
        """Queues jobs behind the lane's others, all or none. Raises QueueFullError past `max_waiting`; the slots of a
        job that was refused are freed."""
        try:
            self._admit(jobs)
        except QueueFullError:
            for job in jobs:
                if isinstance(job, SearchJob | ScoreJob):
                    self._num_forks -= len(job.slots)
                    self._ask(partial(self._release, job.slots))
            raise
        for job in jobs:
            self._ask(partial(self._stepper.submit, lane, job))

    def submit_frame(self, frame: FrameJob) -> None:
        """Queues a frame behind all its lanes' jobs. Raises QueueFullError past `max_waiting`."""
        self._admit((frame,))
        self._ask(partial(self._worker.frames.submit, frame))

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

    def close(self, lane: Lane, then: Callable[[], None] | None = None, error: CarouselError | None = None) -> None:
        """Ends the lane's jobs, answering each with `error`, and frees its slot before the next batch.

        Then calls `then` on the event loop. A second call frees nothing twice.
        """

        def act() -> None:
            if not lane.closed:
                lane.closed = True
                self._stepper.abandon(lane, error or RequestCancelledError("the session was closed"))
                self._arena.release(lane.slot)
            if then is not None:
                self._after.append(then)

        self._ask(act)

    def read(self, lanes: Sequence[Lane], then: Callable[[list[LaneState | None]], None]) -> None:
        """Copies lanes' state out as it is between two batches, then calls `then` on the event loop, after what came of
        their jobs until then. None for a lane that is in the midst of a feed or of its source, or closed."""
        self._ask(lambda: self._after.append(partial(then, read_lanes(self._arena, lanes))))

    def write(self, lane: Lane, state: LaneState) -> None:
        """Puts a lane that has no job where another was. What is submitted from here on finds it there. The arrays
        must be of this model's shapes."""
        self._ask(partial(write_lane, self._arena, lane, state))

    def grant(self, lane: Lane, job: GenerateJob, num_tokens: int) -> None:
        """Tells that `num_tokens` more of a generation have left the server."""
        job.num_granted += num_tokens
        if job.parked:
            self._ask(partial(self._stepper.resume, lane, job))

    def is_called(self) -> bool:
        """See `worker.Driver`."""
        return bool(self._inbox or len(self._scheduler))

    def is_listening(self) -> bool:
        """See `worker.Driver`."""
        return self._outgoing.is_listening()

    def tell(self) -> None:
        """See `worker.Driver`: passes on what came of jobs, from the engine's thread to the event loop.

        Tokens of generations that go on wait until it listens.
        """
        if self.is_listening() or self._after or not all(map(goes_on, self._stepper.results)):
            self._gather()
        self._outgoing.call()

    def _admit(self, jobs: tuple[Job, ...]) -> None:
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

    def _release(self, slots: list[Slot]) -> None:
        for slot in slots:
            self._arena.release(slot)

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
            if batch is not None and not self._worker.is_small(batch):
                self._is_thread_driving = True
                self._gather()
                self._outgoing.deliver()
                self._handed_over.put(batch)
                return
            if batch is not None:
                self._worker.run(batch)
                self._num_inline += 1
        except BaseException as error:
            self._on_crash(error)
            raise
        self._gather()
        self._outgoing.deliver()
        if (len(self._scheduler) or self._inbox) and not self._is_pump_due:
            self._is_pump_due = True
            self._loop.call_soon(self._pump)

    def _drive(self) -> None:
        """The thread: runs what it is handed, and goes on until nothing is ready."""
        try:
            while (batch := self._handed_over.get()) is not None:
                following: Batch | None = batch
                while following is not None:
                    self._worker.run_on(following, self)
                    self._num_threaded += 1
                    self._take_in()
                    following = self._scheduler.next_batch()
                    self.tell()
                self._gather()
                self._loop.call_soon_threadsafe(self._take_back)
        except BaseException as error:  # a bug of ours: nobody would be answered any more, so the process must know
            self._loop.call_soon_threadsafe(self._on_crash, error)
            raise

    def _take_back(self) -> None:
        self._is_thread_driving = False
        self._outgoing.deliver()
        if len(self._scheduler) or self._inbox:
            self._pump()

    def _take_in(self) -> None:
        """Carries out what the event loop asked for."""
        inbox = self._inbox
        while inbox:
            inbox.popleft()()

    def _gather(self) -> None:
        """Puts the answers that wait, and what is to be called after them, into the outgoing queue."""
        if self._stepper.results or self._after:
            self._outgoing.put(self._stepper.results, self._after)
            self._stepper.results, self._after = [], []

    def _ended(self, jobs: list[Job]) -> None:
        """Jobs were answered for good."""
        self._num_waiting -= len(jobs)
        for job in jobs:
            if isinstance(job, SearchJob | ScoreJob):
                self._num_forks -= len(job.slots)
        self._observer.queue_changed(self._num_waiting)
