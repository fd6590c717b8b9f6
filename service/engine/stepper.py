"""A lane's walk through its jobs: what to run next, and what a run's logits mean for it.

Pure: no graph, no thread, no clock. It moves lanes between the scheduler's queues and collects results; the engine
runs what the scheduler chooses in between.

The invariants of a lane:
1. `position` counts the tokens fed or generated; the state has consumed all of them but `pending`.
2. Either something is pending, or `next_logits` is known, or nothing was ever run.
3. After a job ends, however it ends, 1 and 2 hold, so the next one can begin.
"""

from __future__ import annotations

import numpy as np

from service.engine.decoding import Choice, FinishReason, FloatArray, FloatRow, choose_batch, log_softmax, top_k
from service.engine.jobs import (
    NO_JOBS,
    NO_TOKENS,
    Encoded,
    EncodeJob,
    Failed,
    Fed,
    FeedJob,
    Generated,
    GenerateJob,
    Job,
    Lane,
    OutputKind,
    OutputSpec,
    Result,
    StepOutput,
)
from service.engine.scheduler import Scheduler
from service.errors import CarouselError, IllegalRequestError, PositionMismatchError, RequestCancelledError


class Stepper:
    """Advances lanes. eos_id: the token at which generations end, if the model has one. Engine's thread only."""

    def __init__(self, scheduler: Scheduler, eos_id: int | None) -> None:
        self._scheduler = scheduler
        self._eos_id = eos_id
        self.results: list[tuple[Job, Result]] = []
        """What came of jobs since it was last emptied, in order."""

    def submit(self, lane: Lane, job: Job) -> None:
        """Puts a job at the end of a lane's queue."""
        if lane.closed:
            self._answer(job, Failed(lane.position, RequestCancelledError("the session was closed")))
            return
        lane.jobs = [*lane.jobs, job]
        if lane.job is None:
            self._begin_next(lane)

    def abandon(self, lane: Lane, error: CarouselError) -> int:
        """Ends the job in hand at the token where it is, and drops the jobs behind it; each is answered `error`.

        Returns how many they were.
        """
        self._scheduler.remove(lane)
        jobs = lane.jobs if lane.job is None else [lane.job, *lane.jobs]
        if isinstance(lane.job, FeedJob | GenerateJob):
            self._set_down(lane)
        lane.job, lane.jobs = None, NO_JOBS
        for job in jobs:
            self._answer(job, Failed(lane.position, error))
        return len(jobs)

    def cancel(self, lane: Lane, error: CarouselError) -> int:
        """As `abandon`, but lets a source that is being encoded be: it belongs to the session, not to its work.

        Returns how many jobs it ended.
        """
        if not isinstance(lane.job, EncodeJob):
            return self.abandon(lane, error)
        dropped, lane.jobs = lane.jobs, NO_JOBS
        for job in dropped:
            self._answer(job, Failed(lane.position, error))
        return len(dropped)

    def resume(self, lane: Lane, job: GenerateJob) -> None:
        """Goes on with a generation that was parked, if it is still the job in hand and has room again."""
        if lane.job is job and job.parked and job.num_produced - job.num_granted < job.window:
            job.parked = False
            self._scheduler.add("step", lane, lane.num_remaining)

    def encoded(self, lane: Lane) -> None:
        """The encoder has run for the lane's job in hand."""
        self._finish(lane, Encoded(lane.position))

    def choose_together(self, lanes: list[Lane], widths: list[int], logits: FloatArray) -> dict[int, tuple[int, float]]:
        """The next tokens of all lanes that generate and have run what they had to, chosen in one go.

        logits: [B, T, V], B >= the number of lanes. Returns (token, log-probability or NaN) by the lane's index.
        """
        rows = [
            index
            for index, (lane, width) in enumerate(zip(lanes, widths, strict=True))
            if isinstance(lane.job, GenerateJob) and lane.num_remaining == width
        ]
        if not rows:
            return {}
        choices = [_choice(lanes[row]) for row in rows]
        tokens, log_probabilities = choose_batch(logits[rows, [widths[row] - 1 for row in rows]], choices)
        return dict(zip(rows, zip(tokens.tolist(), log_probabilities.tolist(), strict=True), strict=True))

    def stepped(self, lane: Lane, width: int, logits: FloatArray, chosen: tuple[int, float] | None = None) -> None:
        """The step graph has run `width` tokens of the lane's job in hand.

        logits: [T, V], T >= width. chosen: what `choose_together` gave for the lane, if it was asked.
        """
        job = lane.job
        lane.done += width
        if isinstance(job, FeedJob):
            self._fed(lane, job, width, logits)
        elif isinstance(job, GenerateJob):
            self._choose(lane, job, logits[width - 1], chosen)

    def _begin_next(self, lane: Lane) -> None:
        while lane.job is None and lane.jobs:
            job = lane.job = lane.jobs[0]
            lane.jobs = lane.jobs[1:] or NO_JOBS
            if isinstance(job, EncodeJob):
                self._scheduler.add("encoder", lane, len(job.source))
            elif isinstance(job, FeedJob):
                self._begin_feed(lane, job)
            elif isinstance(job, GenerateJob):
                self._begin_generate(lane, job)

    def _begin_feed(self, lane: Lane, job: FeedJob) -> None:
        if job.start is None:
            job.start = lane.position
        if job.start != lane.position:
            self._refuse(lane, job, position_mismatch("feed.position", job.start, lane.position))
            return
        self._pick_up(lane, [*lane.pending, *job.tokens])
        self._scheduler.add("step", lane, lane.num_remaining)

    def _begin_generate(self, lane: Lane, job: GenerateJob) -> None:
        if job.start is not None and job.start != lane.position:
            self._refuse(lane, job, position_mismatch("generate.position", job.start, lane.position))
        elif lane.pending:
            job.choice = Choice(job.decoding, lane.position, eos_id=self._eos_id)
            self._pick_up(lane, lane.pending)
            self._scheduler.add("step", lane, lane.num_remaining)
        elif lane.next_logits is not None:
            job.choice = Choice(job.decoding, lane.position, eos_id=self._eos_id)
            self._choose(lane, job, lane.next_logits)
        else:
            error = IllegalRequestError("generate: this model has no start token: feed a token first")
            self._refuse(lane, job, error)

    def _refuse(self, lane: Lane, job: Job, error: CarouselError) -> None:
        """Answers a job that was not begun. Those behind it have their turn."""
        lane.job = None
        self._answer(job, Failed(lane.position, error))

    def _pick_up(self, lane: Lane, inputs: list[int]) -> None:
        lane.inputs, lane.done, lane.num_pending = inputs, 0, len(lane.pending)
        lane.pending = NO_TOKENS

    def _set_down(self, lane: Lane) -> None:
        """Makes a lane whose job ends in the middle whole again: what the state has not consumed and was not new stays
        pending."""
        if lane.done < lane.num_pending:
            lane.pending = lane.inputs[lane.done : lane.num_pending]
        lane.inputs, lane.done, lane.num_pending = NO_TOKENS, 0, 0

    def _fed(self, lane: Lane, job: FeedJob, width: int, logits: FloatArray) -> None:
        assert job.start is not None  # noqa: S101  # set when the feed was begun
        first = lane.done - width
        is_last = not lane.num_remaining
        lane.position = job.start + max(0, lane.done - lane.num_pending)
        if is_last or job.outputs.every_position:
            # an output after each target token of the chunk, or after the last alone; none for what was pending
            begin = max(first, lane.num_pending) if job.outputs.every_position and job.tokens else lane.done - 1
            for index in range(begin, lane.done):
                position = job.start + max(0, index + 1 - lane.num_pending)
                output = _output(logits[index - first], job.outputs, position)
                if output is not None:
                    job.collected.append(output)
        lane.next_logits = logits[width - 1].copy()
        if is_last:
            self._finish(lane, Fed(lane.position, job.collected))
        else:
            self._scheduler.add("step", lane, lane.num_remaining)

    def _choose(self, lane: Lane, job: GenerateJob, logits: FloatRow, chosen: tuple[int, float] | None = None) -> None:
        choice = _choice(lane)
        if chosen is None:
            tokens, log_probabilities = choose_batch(logits[np.newaxis], [choice])
            chosen = int(tokens[0]), float(log_probabilities[0])
        token = chosen[0]
        log_probability = chosen[1] if job.decoding.log_probabilities else None
        reason = job.decoding.finish_reason(token, job.num_produced + 1, self._eos_id)
        if reason is FinishReason.EOS or reason is FinishReason.STOP:
            lane.next_logits = logits.copy()
            self._finish(lane, Generated(lane.position, None, None, reason))
            return
        lane.next_logits = None
        lane.position += 1
        job.num_produced += 1
        if reason is not None:
            lane.pending = [token]
            self._finish(lane, Generated(lane.position, token, log_probability, reason))
            return
        choice.position = lane.position
        choice.num_generated = job.num_produced
        if job.decoding.repetition_penalty != 1.0:
            seen = np.empty(0, np.int64) if choice.seen is None else choice.seen
            choice.seen = np.unique(np.append(seen, token))
        self._answer(job, Generated(lane.position, token, log_probability, None))
        lane.inputs, lane.done, lane.num_pending = [token], 0, 1
        # Parked first and looked at again: the event loop grants first and looks at `parked` then, so one of the two
        # sees the other.
        job.parked = True
        if job.num_produced - job.num_granted < job.window:
            job.parked = False
            self._scheduler.add("step", lane, 1)

    def _finish(self, lane: Lane, result: Result) -> None:
        job = lane.job
        assert job is not None  # noqa: S101  # only a lane with a job in hand is ever run
        lane.job = None
        lane.inputs, lane.done, lane.num_pending = NO_TOKENS, 0, 0
        self._answer(job, result)
        self._begin_next(lane)

    def _answer(self, job: Job, result: Result) -> None:
        self.results.append((job, result))


def _choice(lane: Lane) -> Choice:
    job = lane.job
    assert isinstance(job, GenerateJob)  # noqa: S101  # the callers have looked
    assert job.choice is not None  # noqa: S101  # made when the generation began
    return job.choice


def position_mismatch(field: str, given: int, position: int) -> PositionMismatchError:
    """The error for a request that starts elsewhere than where the session is."""
    return PositionMismatchError(
        f"{field} = {given}, but the session is at position {position}", field=field, position=position
    )


def _output(logits: FloatRow, spec: OutputSpec, position: int) -> StepOutput | None:
    if spec.kind is OutputKind.NEXT_TOKEN:
        return StepOutput(position, [int(logits.argmax())])
    if spec.kind is OutputKind.TOP_K:
        best = top_k(logits, spec.top_k)
        return StepOutput(position, best.tolist(), log_softmax(logits)[best].tolist())
    if spec.kind is OutputKind.LOGITS:
        return StepOutput(position, [], None, logits.copy())
    return None
