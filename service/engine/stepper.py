"""A lane's walk through its jobs: which job is in hand, what it has run next, and what a run's result means for it.

Pure: no graph, no thread, no clock. Jobs in hand add their rows to the scheduler and append their results here; the
core runs the batches that the scheduler chooses in between.

The invariants of a lane:
1. `position` counts the tokens fed or generated; the state has consumed all of them but `pending`.
2. Either something is pending, or `next_logits` is known, or the graphs can read out of the state what comes next, or
   nothing was ever run.
3. After a job ends, however it ends, 1 and 2 hold, so the next one can begin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from service.engine.arena import Slot
from service.engine.decoding import score
from service.engine.jobs import NO_TOKENS, FeedJob, Item, Job, Lane, OutputKind, OutputSpec, Rest
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
    """Advances lanes; only the side that drives the engine calls it. eos_id: the token that ends generations, if any;
    has_readout: whether a graph returns what comes next from a state alone; has_start: whether sessions begin with a
    start token; gives_values: whether the model gives values; read: copies a lane, for marks; release: frees a slot;
    on_fault: called with the number of rows that an unexpected exception has cost, and it."""

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
        """What `settle` will call: what follows a job begins when the job's own work is finished."""
        self.parked: set[RowJob] = set()
        """Generations that wait for a grant."""
        self.entries: list[tuple[Job | None, Any]] = []
        self.num_ended = self.num_partial = self.num_freed = 0

    def add(self, kind: type[Job], begin: Callable[[Lane, Any], object]) -> None:
        """Registers what begins jobs of a kind. This table is the only place that looks at a job's kind."""
        self._begin[kind] = begin

    def submit(self, lane: Lane, job: Job) -> None:
        """Begins a job, or queues it behind the lane's others. When it raises, `begin_failed` is to be called."""
        if lane.refusal is not None:
            self.answer(job, Failed(lane.position, lane.refusal))
        elif lane.active is None and not lane.queue:
            self._begin[type(job)](lane, job)
        else:
            lane.enqueue(Turn(self, job))

    def begin(self, lane: Lane, job: Job) -> None:
        """Begins a job of a lane that has none in hand."""
        try:
            self._begin[type(job)](lane, job)
        except Exception as error:  # a bug of ours must not cost other lanes anything
            self.begin_failed(lane, job, error)

    def abandon(self, lane: Lane, error: CarouselError) -> int:
        """Ends the job in hand at a token boundary, and drops those behind it. Returns how many it answered `error`."""
        active = lane.active
        if active is not None:
            active.unchain()
            lane.active = None
            active.abandon(lane, error)
        return lane.drop_queue(error) + (active is not None)

    def cancel(self, lane: Lane, error: CarouselError) -> int:
        """As `abandon`, but a source goes on being encoded: it belongs to the session, not to its work."""
        if lane.active is None or not lane.active.survives_cancel:
            return self.abandon(lane, error)
        return lane.drop_queue(error)

    def answer(self, job: Job, result: Result | Stepped) -> None:
        """Gives a job its last result, and frees its forks."""
        self.entries.append((job, result))
        self.num_ended += 1
        if job.slots:
            for slot in job.slots:
                self._release(slot)
            self.num_freed += len(job.slots)

    def answer_partly(self, job: Job, result: Result) -> None:
        """Gives a job a result that is not its last."""
        self.entries.append((job, result))
        self.num_partial += 1

    def finish(self, lane: Lane, job: Job, result: Result) -> None:
        """Ends a lane's job in hand with its last result."""
        lane.active = None
        if job.slots:
            self.answer(job, result)
        else:
            self.entries.append((job, result))
            self.num_ended += 1
        if lane.queue:
            self.free(lane)

    def free(self, lane: Lane) -> None:
        """Has the lane's next job begun by `settle`, unless it has one in hand by then."""
        self.due.append(lane.begin_next)

    def settle(self) -> None:
        """Begins all jobs whose turn has come. To be called after each command and each batch."""
        while self.due:
            self.due.popleft()()

    def take_results(self) -> Produced:
        """What has been produced since the last call."""
        produced = Produced(self.entries, self.num_ended, self.num_partial, self.num_freed)
        self.entries, self.num_ended, self.num_partial, self.num_freed = [], 0, 0, 0
        return produced

    def can_read_out(self, lane: Lane) -> bool:
        """Whether the readout graph returns what comes next in a lane where nothing is pending."""
        return not self.keeps_logits and bool(lane.position or self.can_read_start)

    def _begin_feed(self, lane: Lane, job: FeedJob) -> None:
        if job.start is not None and job.start != lane.position:
            self.answer(job, Failed(lane.position, position_mismatch("feed.position", job.start, lane.position)))
        else:
            ActiveFeed(self, lane, job, job.tokens, job.outputs, has_mark=job.has_mark)

    def begin_failed(self, lane: Lane, job: Job, error: Exception) -> None:
        """Answers a job that raised when it was begun, and keeps its lane serving."""
        self.on_fault(1, error)
        failure = EngineError("the request could not be started; the session is as it was before")
        active, lane.active = lane.active, None
        if active is None:
            self.answer(job, Failed(lane.position, failure))
        else:
            active.abandon(lane, failure)
        if lane.queue:
            self.free(lane)


class Whole(Protocol):
    """A job in hand that has feeds as its parts."""

    def part_ended(self, part: ActiveFeed, result: Result) -> None:
        """A part is done or has failed. Its lane has no job in hand now."""


class ActiveFeed(RowJob):
    """Tokens that a lane consumes: a feed, or part `index` of `whole`. targets: what came after each of the tokens,
    whose log-probabilities are collected in `scores`."""

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
            if self.fetch is not NEXT_TOKEN:
                self._collect(result, row, first, done - 1)
            elif outputs.kind is OutputKind.NEXT_TOKEN:
                self._collected = [StepOutput(lane.position, [result.next_token(row, width - 1)])]
        elif outputs.every_position:
            # an output after each target token of the chunk; one after all that was pending when there is no other
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
        self.set_down()
        self._end(Failed(lane.position, error))

    def rest(self, lane: Lane) -> Rest | None:
        """See `ActiveJob`: a feed is read before its first new token or after its last."""
        if self.num_pending < self.done < len(self.inputs):
            return None
        return super().rest(lane)

    def _queue(self) -> None:
        """Has what is left run: of a feed that is traced, one token at a time."""
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
    """A job of one lane that waits in the lane's queue."""

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
    """Why nothing comes next in a session that has consumed nothing."""
    return IllegalRequestError("generate: this model has no start token: feed a token, or a vector, first")
