"""Decides for each lane which job is active, what it runs next, and what the result of a run means for it.

Knows no graph, no thread and no clock. Active jobs add their rows to the scheduler and append their results here. The
core runs the batches that the scheduler chooses.

Invariants of a lane:
1. `position` counts the tokens fed or generated. The state has consumed all of them except `pending`.
2. Tokens are pending, `next_logits` is known, the readout graph can compute the next logits, or nothing was ever run.
3. After a job ends, in whatever way, 1 and 2 hold, so the next job can begin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from service.engine.arena import Slot
from service.engine.decoding import score
from service.engine.jobs import NO_TOKENS, FeedJob, Item, Job, Lane, OutputKind, OutputSpec, Remainder
from service.engine.results import (
    LOGITS,
    NEXT_TOKEN,
    TOKEN_OUTPUTS,
    Failed,
    Fed,
    LaneState,
    Produced,
    Result,
    StepOutput,
    Stepped,
    StepResult,
    fetch_for,
    known,
)
from service.engine.scheduler import RowJob, Scheduler
from service.errors import CarouselError, EngineError, IllegalRequestError, position_mismatch


class Stepper:
    """Advances lanes. Called only by the thread that drives the engine. eos_id: the token that ends generations;
    has_readout: whether a graph computes the next logits from a state alone; has_start: whether sessions begin with a
    start token; gives_values: whether the model returns values, not logits; read: copies a lane's state, for marks;
    release: frees a slot; on_fault: called with the number of rows that an exception affects, and the exception."""

    def __init__(
        self,
        scheduler: Scheduler,
        eos_id: int | None,
        *,
        has_readout: bool = False,
        has_start: bool = False,
        gives_values: bool = False,
        read: Callable[[Lane], LaneState | None] = lambda lane: None,
        release: Callable[[Slot], None] = lambda slot: None,
        on_fault: Callable[[int, Exception], None] = lambda num_rows, error: None,
    ) -> None:
        self.scheduler = scheduler
        self.eos_id = eos_id
        self.keeps_logits = not has_readout
        self.can_read_start = has_start
        self.gives_values = gives_values
        self.read = read
        self.on_fault = on_fault
        self._release = release
        self._begin: dict[type[Job], Callable[[Lane, Any], object]] = {FeedJob: self._begin_feed}
        self.due: deque[Callable[[], None]] = deque()
        """Callbacks that begin the next jobs; `settle` calls them, after the current job's own work is finished."""
        self.parked: set[RowJob] = set()
        """Generations whose window is full: they wait for a grant."""
        self.entries: list[tuple[Job | None, Any]] = []
        self.num_ended = self.num_partial = self.num_freed = 0

    def add(self, kind: type[Job], begin: Callable[[Lane, Any], object]) -> None:
        """Registers the handler that begins one kind of job. Only this table distinguishes kinds of one lane's jobs."""
        self._begin[kind] = begin

    def submit(self, lane: Lane, job: Job) -> None:
        """Begins a job, or queues it behind the lane's others. If this raises, the caller must call `begin_failed`."""
        if lane.refusal is not None:
            self.answer(job, Failed(lane.position, lane.refusal))
        elif lane.active is None and not lane.queue:
            self._begin[type(job)](lane, job)
        else:
            lane.enqueue(Turn(self, job))

    def begin(self, lane: Lane, job: Job) -> None:
        """Begins a job of a lane that has no active job."""
        try:
            self._begin[type(job)](lane, job)
        except Exception as error:  # a bug in one job must not affect other lanes
            self.begin_failed(lane, job, error)

    def abandon(self, lane: Lane, error: CarouselError) -> int:
        """Ends the active job at a token boundary and drops the queue. Returns how many jobs end with `error`; a step
        batch whose row has run keeps the lane and does not count."""
        active = lane.active
        if active is not None:
            active.unchain()
            lane.active = None
            active.abandon(lane, error)
        return (lane.active is not active) + lane.drop_queue(error)

    def cancel(self, lane: Lane, error: CarouselError) -> int:
        """Like `abandon`, but lets an active encode job finish: every later request of the session needs its source."""
        if lane.active is None or not lane.active.survives_cancel:
            return self.abandon(lane, error)
        return lane.drop_queue(error)

    def answer(self, job: Job, result: Result | Stepped) -> None:
        """Appends a job's last result and frees its forks."""
        self.entries.append((job, result))
        self.num_ended += 1
        if job.slots:
            for slot in job.slots:
                self._release(slot)
            self.num_freed += len(job.slots)

    def answer_partly(self, job: Job, result: Result) -> None:
        """Appends a result that is not the job's last."""
        self.entries.append((job, result))
        self.num_partial += 1

    def finish(self, lane: Lane, job: Job, result: Result) -> None:
        """Ends the lane's active job with its last result."""
        lane.active = None
        if job.slots:
            self.answer(job, result)
        else:  # what `answer` does, without a call in each feed
            self.entries.append((job, result))
            self.num_ended += 1
        if lane.queue:
            self.free(lane)

    def free(self, lane: Lane) -> None:
        """Makes `settle` begin the lane's next job, unless the lane has an active job by then."""
        self.due.append(lane.begin_next)

    def settle(self) -> None:
        """Begins all jobs whose turn has come. Must be called after each command and each batch."""
        while self.due:
            self.due.popleft()()

    def take_results(self) -> Produced:
        """Returns, and forgets, everything that was produced since the last call."""
        produced = Produced(self.entries, self.num_ended, self.num_partial, self.num_freed)
        self.entries, self.num_ended, self.num_partial, self.num_freed = [], 0, 0, 0
        return produced

    def can_read_out(self, lane: Lane) -> bool:
        """Whether the readout graph can compute the next logits of a lane that has no pending tokens."""
        return not self.keeps_logits and bool(lane.position or self.can_read_start)

    def _begin_feed(self, lane: Lane, job: FeedJob) -> None:
        if job.start is not None and job.start != lane.position:
            self.answer(job, Failed(lane.position, position_mismatch("feed.position", job.start, lane.position)))
        else:
            ActiveFeed(self, lane, job, job.tokens, job.outputs, has_mark=job.has_mark)

    def begin_failed(self, lane: Lane, job: Job, error: Exception) -> None:
        """Answers a job whose begin raised `error`. The lane stays usable."""
        self.on_fault(1, error)
        failure = EngineError("the request could not be started; the session is unchanged")
        active, lane.active = lane.active, None
        if active is None:
            self.answer(job, Failed(lane.position, failure))
        else:
            active.abandon(lane, failure)
        if lane.queue:
            self.free(lane)


class Whole(Protocol):
    """An active job whose parts are feeds."""

    def part_ended(self, part: ActiveFeed, result: Result) -> None:
        """Handles the end of a part, done or failed. The part's lane has no active job at this moment."""


class ActiveFeed(RowJob):
    """Tokens that a lane consumes: a feed, or part `index` of `whole`. targets: for each token the one that follows it,
    whose log-probability is appended to `scores`."""

    __slots__ = ("_collected", "_has_mark", "_outputs", "_start", "_stepper", "_whole", "index", "scores", "targets")

    def __init__(
        self,
        stepper: Stepper,
        lane: Lane,
        job: Job,
        tokens: Sequence[Item],
        outputs: OutputSpec,
        *,
        has_mark: bool = False,
        whole: Whole | None = None,
        index: int = 0,
        targets: Sequence[int] | None = None,
    ) -> None:
        self.lane, self.job = lane, job
        self.done = self.ticket = 0
        self.index, self.targets = index, targets
        self.scores: list[float] = []
        self._stepper, self._outputs = stepper, outputs
        self._has_mark, self._whole = has_mark, whole
        self._start = lane.position
        self._collected: list[StepOutput] = []
        self.fetch = LOGITS if targets is not None else TOKEN_OUTPUTS.get(outputs) or fetch_for(outputs)
        self.runs_on = False
        lane.active = self
        self.num_pending = len(lane.pending)
        self.inputs = tokens
        if self.num_pending:
            self.inputs = [*lane.pending, *tokens]
            lane.pending = NO_TOKENS
        num_left = len(self.inputs)
        if num_left == 1:
            stepper.scheduler.add("step", self, 1)
        elif num_left:
            self._queue()
        else:
            self._ask_what_comes_next()

    def take(self, result: StepResult, row: int, width: int) -> None:
        """See `RowJob`."""
        lane, outputs = self.lane, self._outputs
        if not self.inputs:
            output = result.output(row, 0, outputs, lane.position)
            self._end(Fed(lane.position, [] if output is None else [output]))
            return
        first = self.done
        self.done = done = first + width
        num_pending = self.num_pending
        if done > num_pending:
            lane.position = self._start + done - num_pending
        lane.next_logits = result.row(row, width - 1).copy() if self._stepper.keeps_logits else None
        is_last = done == len(self.inputs)
        if self.targets is not None:
            rows = result.row(row, slice(width))
            self.scores += score(rows, np.array(self.targets[first:done])).tolist()
        elif is_last and not outputs.every_position:
            if self.fetch is not NEXT_TOKEN:  # one comparison for the most frequent outputs
                self._collect(result, row, first, done - 1)
            elif outputs.kind is OutputKind.NEXT_TOKEN:
                self._collected = [StepOutput(lane.position, [result.next_token(row, width - 1)])]
        elif outputs.every_position:
            # one output for each new token of the chunk; if only pending tokens are run, one output after the last
            self._collect(result, row, first, max(first, num_pending) if len(self.inputs) > num_pending else done - 1)
        if not is_last:
            self._queue()
        elif self._whole is None:
            mark = self._stepper.read(lane) if self._has_mark else None
            self._stepper.finish(lane, self.job, Fed(lane.position, self._collected, mark))
        else:
            self._end(Fed(lane.position, self._collected))

    def abandon(self, lane: Lane, error: CarouselError) -> None:
        """See `ActiveJob`."""
        self._stepper.scheduler.remove(self)
        self.restore_pending()
        self._end(Failed(lane.position, error))

    def remainder(self, lane: Lane) -> Remainder | None:
        """See `ActiveJob`: None between its first new token and its last."""
        if self.num_pending < self.done < len(self.inputs):
            return None
        return super().remainder(lane)

    def _queue(self) -> None:
        """Schedules the remaining tokens; of a traced feed, one token at a time."""
        num_left = len(self.inputs) - self.done
        width = self._stepper.scheduler.add("step", self, 1 if self._outputs.has_trace else num_left)
        self.runs_on = num_left > width

    def _ask_what_comes_next(self) -> None:
        lane = self.lane
        if lane.next_logits is not None:
            self.take(known(lane.next_logits, self._stepper.gives_values), 0, 1)
        elif self._stepper.can_read_out(lane):
            self._stepper.scheduler.add("readout", self, 1)
        else:
            self._end(Failed(lane.position, nothing_consumed()))

    def _collect(self, result: StepResult, row: int, first: int, begin: int) -> None:
        for index in range(begin, self.done):
            position = self._start + max(0, index + 1 - self.num_pending)
            output = result.output(row, index - first, self._outputs, position)
            if output is not None:
                self._collected.append(output)

    def _end(self, result: Result) -> None:
        if self._whole is None:
            self._stepper.finish(self.lane, self.job, result)
        else:
            self.lane.active = None
            self._whole.part_ended(self, result)


class Turn:
    """A job that waits in a lane's queue."""

    __slots__ = ("_job", "_stepper")

    def __init__(self, stepper: Stepper, job: Job) -> None:
        self._stepper = stepper
        self._job = job

    def begin(self, lane: Lane) -> None:
        """See `Queued`."""
        self._stepper.begin(lane, self._job)

    def drop(self, lane: Lane, error: CarouselError) -> None:
        """See `Queued`."""
        self._stepper.answer(self._job, Failed(lane.position, error))


def nothing_consumed() -> CarouselError:
    """Returns the error for a session that has consumed nothing, so that no next token exists."""
    return IllegalRequestError("this model has no start token: feed a token or a vector before you generate")
