"""One model's engine: a thread that schedules, runs, commits.

It owns the arena and every lane, sleeps until there is work, and takes at once what is ready: while a graph runs,
the next batch gathers by itself (continuous, or cellular, batching: Gao et al., EuroSys 2018). What a batch gave goes
back to the event loop in one call.

The event loop's side is `open`, `submit`, `cancel`, `close`, `grant`: all of them return at once. Nothing here knows
sessions, gRPC or asyncio beyond the loop's `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from time import perf_counter

from service.engine.arena import Arena
from service.engine.jobs import Generated, GenerateJob, Job, Lane, Result
from service.engine.runner import Runner
from service.engine.scheduler import Batch, Scheduler
from service.engine.stepper import Stepper
from service.errors import EngineError, QueueFullError, RequestCancelledError, TooManySessionsError
from service.observer import BatchReport, EngineObserver
from service.repository.bundle import Bundle


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """num_slots: sessions at once; max_waiting: requests admitted and not yet answered; max_batch_rows: sessions in
    a batch; max_batch_tokens: rows times width of one; max_chunk_tokens: tokens of one session in one."""

    num_slots: int = 10_000
    max_waiting: int = 16_384
    max_batch_rows: int = 256
    max_batch_tokens: int = 256
    max_chunk_tokens: int = 32


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """slots_used: sessions that have a slot; num_waiting: requests admitted and not yet answered."""

    slots_used: int
    num_waiting: int


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
        self._bos_id = bundle.manifest.special_tokens.bos_id
        self._arena = Arena(bundle.manifest, limits.num_slots)
        self._runner = Runner(bundle, self._arena)
        self._scheduler = Scheduler(
            max_rows=limits.max_batch_rows,
            max_tokens=limits.max_batch_tokens,
            max_chunk=limits.max_chunk_tokens,
        )
        self._stepper = Stepper(self._scheduler, bundle.manifest.special_tokens.eos_id)
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._num_waiting = 0
        name = f"engine-{bundle.model}-{bundle.version}"
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Warms every batch size up, then starts the thread. Blocks while it warms up; any thread."""
        self._runner.warm_up(self._limits.max_batch_rows)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the batch in hand, without answering what waits. Blocks; any thread."""
        self._inbox.put(None)
        self._thread.join()

    @property
    def statistics(self) -> EngineStatistics:
        """A view of the engine as it is now. Any thread."""
        return EngineStatistics(self._arena.num_used, self._num_waiting)

    def open(self) -> Lane:
        """A lane with a zeroed slot. Raises TooManySessionsError when every slot is taken."""
        slot = self._arena.acquire()
        if slot is None:
            raise TooManySessionsError(
                f"all {self._limits.num_slots} session slots are taken: close a session, or try again later",
                retry_delay_s=1.0,
                max_sessions=self._limits.num_slots,
            )
        return Lane(slot, [] if self._bos_id is None else [self._bos_id])

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
            self._inbox.put(partial(self._stepper.submit, lane, job))

    def cancel(self, lane: Lane, then: Callable[[int], None]) -> None:
        """Ends the lane's jobs at a token boundary, answering each; then calls `then` on the event loop with their
        number."""

        def act() -> None:
            count = self._stepper.cancel(lane, RequestCancelledError("the request was cancelled"))
            self._flush()
            self._loop.call_soon_threadsafe(then, count)

        self._inbox.put(act)

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
                self._flush()
                self._loop.call_soon_threadsafe(then)

        self._inbox.put(act)

    def grant(self, lane: Lane, job: GenerateJob, num_tokens: int) -> None:
        """Tells that `num_tokens` more of a generation have left the server."""
        job.num_granted += num_tokens
        if job.parked:
            self._inbox.put(partial(self._stepper.resume, lane, job))

    def _main(self) -> None:
        try:
            while self._take_in(wait=not len(self._scheduler)):
                batch = self._scheduler.next_batch()
                if batch is not None:
                    self._run(batch)
                self._flush()
        except BaseException as error:  # a bug of ours: nobody would be answered any more, so the process must know
            self._loop.call_soon_threadsafe(self._on_crash, error)
            raise

    def _take_in(self, *, wait: bool) -> bool:
        """Carries out what the event loop asked for; False when it asked to stop."""
        try:
            act = self._inbox.get(block=wait)
            while act is not None:
                act()
                act = self._inbox.get_nowait()
        except Empty:
            return True
        return False

    def _run(self, batch: Batch) -> None:
        began = perf_counter()
        try:
            ran = self._runner.run(batch)
        except Exception as error:  # ONNX Runtime raises classes of its own; whatever it was, the state is untouched
            self._observer.batch_failed(batch.kind, len(batch.lanes), error)
            for lane in batch.lanes:
                self._stepper.abandon(lane, EngineError("the model failed to run; the session is as it was before"))
            return
        ended = perf_counter()
        queue_s = []
        for index, lane in enumerate(batch.lanes):
            job = lane.job
            if job is not None and not job.started:
                job.started = True
                queue_s.append(began - job.submitted_s)
            if ran.logits is None:
                self._stepper.encoded(lane)
            else:
                self._stepper.stepped(lane, batch.widths[index], ran.logits[index])
        self._observer.batch_ran(
            BatchReport(
                batch.kind,
                len(batch.lanes),
                sum(batch.widths),
                ran.capacity,
                tuple(queue_s),
                ran.gather_s,
                ran.run_s,
                perf_counter() - ended,
            )
        )

    def _flush(self) -> None:
        results = self._stepper.results
        if results:
            self._stepper.results = []
            self._loop.call_soon_threadsafe(self._deliver, results)

    def _deliver(self, results: list[tuple[Job, Result]]) -> None:
        """Answers on the event loop. One answer's failure is reported and takes no other down."""
        for job, result in results:
            if not (isinstance(result, Generated) and result.finish_reason is None):
                self._num_waiting -= 1
            try:
                job.reply(job, result)
            except Exception as error:  # a bug at the edge must not cost a neighbour its answer
                self._loop.call_exception_handler({"message": "answering a request failed", "exception": error})
        self._observer.queue_changed(self._num_waiting)
