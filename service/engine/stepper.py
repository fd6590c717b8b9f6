"""A lane's walk through its jobs: what to run next, and what a run's outcome means for it.

Pure: no graph, no thread, no clock. It moves lanes between the scheduler's queues and collects results; the engine
runs what the scheduler chooses in between. Jobs of more than one lane's tokens are carried out by others, a `Conductor`
each, in parts that are feeds.

The invariants of a lane:
1. `position` counts the tokens fed or generated; the state has consumed all of them but `pending`.
2. Either something is pending, or `next_logits` is known, or the graphs can read out of the state what comes next, or
   nothing was ever run.
3. After a job ends, however it ends, 1 and 2 hold, so the next one can begin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from service.engine.conductor import Conductor
from service.engine.decoding import Choice, FinishReason, FloatRow, score
from service.engine.items import Item
from service.engine.jobs import NO_JOBS, NO_TOKENS, EncodeJob, FeedJob, FrameJob, GenerateJob, Job, Lane
from service.engine.lane_state import LaneState
from service.engine.outcome import Outcome, choose_together
from service.engine.results import Encoded, Failed, Fed, Generated, Result, Stepped
from service.engine.scheduler import Batch, Scheduler
from service.errors import CarouselError, IllegalRequestError, RequestCancelledError, position_mismatch


class Stepper:
    """Advances lanes; the thread that drives the engine alone. eos_id: the token at which generations end, if the model
    has one; has_readout: whether a state alone tells what comes next; has_start: whether that of a session that is at
    its start does, its start token run; gives_values: whether it is values; read: tells a lane's state, for marks."""

    def __init__(
        self,
        scheduler: Scheduler,
        eos_id: int | None,
        *,
        has_readout: bool = False,
        has_start: bool = False,
        gives_values: bool = False,
        read: Callable[[Lane], LaneState | None] = lambda lane: None,
    ) -> None:
        self.scheduler = scheduler
        self.eos_id = eos_id
        self.keeps_logits = not has_readout
        self._has_start = has_start
        self._gives_values = gives_values
        self._read = read
        self._conductors: dict[type[Job], Conductor] = {}
        self.results: list[tuple[Job, Result | Stepped]] = []
        """What came of jobs since it was last emptied, in order."""

    def add(self, kind: type[Job], conductor: Conductor) -> None:
        """Leaves jobs of a kind to somebody else."""
        self._conductors[kind] = conductor

    def submit(self, lane: Lane, job: Job) -> None:
        """Puts a job at the end of a lane's queue."""
        if lane.closed:
            self._drop(lane, job, RequestCancelledError("the session was closed"))
            return
        if isinstance(lane.job, FrameJob):
            lane.job.unchain()
        lane.jobs = [*lane.jobs, job]
        if lane.job is None:
            self.begin_next(lane)

    def abandon(self, lane: Lane, error: CarouselError) -> int:
        """Ends the job in hand at the token where it is, and drops the jobs behind it; each is answered `error`.

        Returns how many they were.
        """
        self.scheduler.remove(lane)
        if isinstance(lane.job, FrameJob):
            lane.job.unchain()
        job, dropped = lane.job, lane.jobs
        lane.job, lane.jobs = None, NO_JOBS
        if isinstance(job, FeedJob | GenerateJob):
            self._set_down(lane)
        if job is not None:
            conductor = self._conductors.get(type(job))
            if conductor is None:
                self._end(lane, job, Failed(lane.position, error))
            else:
                conductor.abandon(lane, job, error)
        for one in dropped:
            self._drop(lane, one, error)
        return len(dropped) + (job is not None)

    def cancel(self, lane: Lane, error: CarouselError) -> int:
        """As `abandon`, but lets a source that is being encoded be: it belongs to the session, not to its work.

        Returns how many jobs it ended.
        """
        if not isinstance(lane.job, EncodeJob):
            return self.abandon(lane, error)
        dropped, lane.jobs = lane.jobs, NO_JOBS
        for job in dropped:
            self._drop(lane, job, error)
        return len(dropped)

    def resume(self, lane: Lane, job: GenerateJob) -> None:
        """Goes on with a generation that was parked, if it is still the job in hand and has room again."""
        if lane.job is job and job.parked and job.num_produced - job.num_granted < job.window:
            job.parked = False
            self.scheduler.add("step", lane, lane.num_remaining)

    def encoded(self, lane: Lane) -> None:
        """The encoder has run for the lane's job in hand."""
        self._finish(lane, Encoded(lane.position))

    def stepped(self, batch: Batch, outcome: Outcome) -> None:
        """A graph has run a batch, and told what `wants.of` said. Its groups are their owners' to look at."""
        is_run = batch.kind == "step"
        chosen = choose_together(batch, outcome)
        for row, (lane, width) in enumerate(zip(batch.lanes, batch.widths, strict=True)):
            job = lane.job
            if isinstance(job, FeedJob):
                if is_run:
                    self._fed(lane, job, width, outcome, row)
                else:
                    self._told(lane, job, outcome, row)
            elif isinstance(job, GenerateJob):
                self._chosen(lane, job, chosen.get(row), outcome, (row, width - 1))

    def generated(self, lane: Lane, token_ids: Sequence[Item], log_probabilities: list[float] | None) -> None:
        """The lane's generation has gone on by several tokens, none of which ends it.

        The state has consumed all of them but the last.
        """
        job = lane.job
        assert isinstance(job, GenerateJob)  # noqa: S101  # the caller has looked
        lane.position += len(token_ids)
        job.num_produced += len(token_ids)
        lane.inputs, lane.done, lane.num_pending = list(token_ids[-1:]), 0, 1
        self._answer(job, Generated(lane.position, token_ids, log_probabilities, None))

    def chose(self, lane: Lane, token: int, log_probability: float, outcome: Outcome, row: int) -> None:
        """The lane's generation goes on by a token that a row of an outcome made it choose, or ends with it."""
        job = lane.job
        assert isinstance(job, GenerateJob)  # noqa: S101  # the caller has looked
        self._chosen(lane, job, (token, log_probability), outcome, (row, 0))

    def go_on(self, lane: Lane) -> None:
        """Runs a generation's last token, as soon as its window has room for the next."""
        job = lane.job
        assert isinstance(job, GenerateJob)  # noqa: S101  # the caller has looked
        assert job.choice is not None  # noqa: S101  # made when the generation began
        job.choice.position = lane.position
        job.choice.num_generated = job.num_produced
        # Parked first and looked at again: the event loop grants first and looks at `parked` then, so one of the two
        # sees the other.
        job.parked = True
        if job.num_produced - job.num_granted < job.window:
            job.parked = False
            self.scheduler.add("step", lane, lane.num_remaining)

    def begin_next(self, lane: Lane) -> None:
        """Takes the next job of a lane that has none in hand, if there is one."""
        while lane.job is None and lane.jobs:
            job = lane.job = lane.jobs[0]
            lane.jobs = lane.jobs[1:] or NO_JOBS
            if isinstance(job, EncodeJob):
                self.scheduler.add("encoder", lane, len(job.source))
            elif isinstance(job, FeedJob):
                self._begin_feed(lane, job)
            elif isinstance(job, GenerateJob):
                self._begin_generate(lane, job)
            else:
                self._conductors[type(job)].begin(lane, job)

    def begin_part(self, lane: Lane, part: FeedJob) -> None:
        """Gives a lane a part of another job, which its conductor has in hand."""
        lane.job = part
        self._begin_feed(lane, part)

    def finish(self, lane: Lane, job: Job, result: Result) -> None:
        """Answers a job, and takes the lane's next one."""
        lane.job = None
        self._answer(job, result)
        self.begin_next(lane)

    def _begin_feed(self, lane: Lane, job: FeedJob) -> None:
        if job.start is None:
            job.start = lane.position
        if job.start != lane.position:
            self._refuse(lane, job, position_mismatch("feed.position", job.start, lane.position))
        elif lane.pending or job.tokens:
            self._pick_up(lane, [*lane.pending, *job.tokens])
            self._queue(lane, job)
        elif lane.next_logits is not None:
            self._told(lane, job, self._known(lane.next_logits), 0)
        else:
            self._read_out(lane, job)

    def _begin_generate(self, lane: Lane, job: GenerateJob) -> None:
        if job.start is not None and job.start != lane.position:
            self._refuse(lane, job, position_mismatch("generate.position", job.start, lane.position))
            return
        job.choice = Choice(job.decoding, lane.position, job.num_produced, job.seen, self.eos_id)
        if lane.pending:
            self._pick_up(lane, lane.pending)
            self.scheduler.add("step", lane, lane.num_remaining)
        elif lane.next_logits is not None:
            self.stepped(Batch("readout", [lane], [1], [], 1), self._known(lane.next_logits))
        else:
            self._read_out(lane, job)

    def _read_out(self, lane: Lane, job: Job) -> None:
        """Has the lane told what comes next, which its state alone knows."""
        if not self.keeps_logits and (lane.position or self._has_start):
            self.scheduler.add("readout", lane, 1)
        else:
            self._refuse(lane, job, IllegalRequestError("generate: this model has no start token: feed a token first"))

    def _refuse(self, lane: Lane, job: Job, error: CarouselError) -> None:
        """Answers a job that was not begun. Those behind it have their turn."""
        lane.job = None
        self._end(lane, job, Failed(lane.position, error))

    def _drop(self, lane: Lane, job: Job, error: CarouselError) -> None:
        conductor = self._conductors.get(type(job))
        if conductor is None:
            self._answer(job, Failed(lane.position, error))
        else:
            conductor.drop(lane, job, error)

    def _pick_up(self, lane: Lane, inputs: list[Item]) -> None:
        lane.inputs, lane.done, lane.num_pending = inputs, 0, len(lane.pending)
        lane.pending = NO_TOKENS

    def _set_down(self, lane: Lane) -> None:
        """Makes a lane whose job ends in the middle whole again: what the state has not consumed and was not new stays
        pending."""
        if lane.done < lane.num_pending:
            lane.pending = lane.inputs[lane.done : lane.num_pending]
        lane.inputs, lane.done, lane.num_pending = NO_TOKENS, 0, 0

    def _fed(self, lane: Lane, job: FeedJob, width: int, outcome: Outcome, row: int) -> None:
        assert job.start is not None  # noqa: S101  # set when the feed was begun
        first = lane.done
        lane.done += width
        is_last = not lane.num_remaining
        lane.position = job.start + max(0, lane.done - lane.num_pending)
        if job.targets is not None:
            assert outcome.logits is not None  # noqa: S101  # `wants` has asked for them
            job.scores += score(outcome.logits[row, :width], np.array(job.targets[first : lane.done])).tolist()
        elif is_last or job.outputs.every_position:
            # an output after each target token of the chunk, or after the last alone; none for what was pending
            begin = max(first, lane.num_pending) if job.outputs.every_position and job.tokens else lane.done - 1
            for index in range(begin, lane.done):
                position = job.start + max(0, index + 1 - lane.num_pending)
                output = outcome.output(row, index - first, job.outputs, position)
                if output is not None:
                    job.collected.append(output)
        if self.keeps_logits:
            lane.next_logits = outcome.row(row, width - 1).copy()
        if is_last:
            mark = self._read(lane) if job.has_mark else None
            self._finish(lane, Fed(lane.position, job.collected, mark))
        else:
            self._queue(lane, job)

    def _queue(self, lane: Lane, job: FeedJob) -> None:
        """Has what is left of a feed run: of one that is looked into, one token at a time."""
        self.scheduler.add("step", lane, 1 if job.outputs.has_trace else lane.num_remaining)

    def _known(self, logits: FloatRow) -> Outcome:
        return Outcome(logits[np.newaxis, np.newaxis], gives_values=self._gives_values)

    def _told(self, lane: Lane, job: FeedJob, outcome: Outcome, row: int) -> None:
        """A feed of no tokens knows what comes next without having run any."""
        output = outcome.output(row, 0, job.outputs, lane.position)
        self._finish(lane, Fed(lane.position, [] if output is None else [output]))

    def _chosen(
        self, lane: Lane, job: GenerateJob, chosen: tuple[int, float] | None, outcome: Outcome, at: tuple[int, int]
    ) -> None:
        token: Item = outcome.next_item(*at) if chosen is None else chosen[0]
        reason = job.decoding.finish_reason(token, job.num_produced + 1, self.eos_id)
        if reason is FinishReason.EOS or reason is FinishReason.STOP:
            if self.keeps_logits:
                lane.next_logits = outcome.row(*at).copy()
            self._finish(lane, Generated(lane.position, [], None, reason))
            return
        lane.next_logits = None
        lane.position += 1
        job.num_produced += 1
        log_probabilities = [chosen[1]] if chosen is not None and job.decoding.log_probabilities else None
        generated = Generated(lane.position, [token], log_probabilities, reason)
        if reason is not None:
            lane.pending = [token]
            self._finish(lane, generated)
            return
        assert job.choice is not None  # noqa: S101  # made when the generation began
        if isinstance(token, int):
            job.choice.advance(token)
        lane.inputs, lane.done, lane.num_pending = [token], 0, 1
        self._answer(job, generated)
        self.go_on(lane)

    def _finish(self, lane: Lane, result: Result) -> None:
        job = lane.job
        assert job is not None  # noqa: S101  # only a lane with a job in hand is ever run
        lane.job = None
        lane.inputs, lane.done, lane.num_pending = NO_TOKENS, 0, 0
        self._end(lane, job, result)
        self.begin_next(lane)

    def _end(self, lane: Lane, job: Job, result: Result) -> None:
        if job.whole is None:
            self._answer(job, result)
        elif isinstance(job, FeedJob):
            self._conductors[type(job.whole)].part_ended(lane, job, result)

    def _answer(self, job: Job, result: Result) -> None:
        self.results.append((job, result))
