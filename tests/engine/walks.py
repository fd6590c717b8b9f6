"""Lanes walked over a made-up model, each beside a plain session that says what every answer must be."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from service.engine.arena import Slot
from service.engine.decoding import Decoding, FinishReason, FloatRow, choose, log_softmax, top_k
from service.engine.jobs import (
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
from service.engine.scheduler import Batch, Scheduler
from service.engine.stepper import Stepper
from service.errors import (
    CarouselError,
    EngineError,
    IllegalRequestError,
    PositionMismatchError,
    RequestCancelledError,
)

VOCABULARY_SIZE = 6
BOS_ID = 4
EOS_ID = 5


def next_logits(history: Sequence[int]) -> FloatRow:
    """[V] after a history of source, start token and target tokens: any function will do that tells histories apart."""
    seed = zlib.crc32(bytes(history))
    return np.array([zlib.crc32(bytes([t]), seed) % 997 / 100 for t in range(VOCABULARY_SIZE)], np.float32)


def output_after(history: Sequence[int], spec: OutputSpec, position: int) -> StepOutput:
    logits = next_logits(history)
    if spec.kind is OutputKind.NEXT_TOKEN:
        return StepOutput(position, [int(logits.argmax())])
    if spec.kind is OutputKind.TOP_K:
        best = top_k(logits, spec.top_k)
        return StepOutput(position, best.tolist(), log_softmax(logits)[best].tolist())
    return StepOutput(position, [], None, logits)


def comparable(output: StepOutput) -> tuple[object, ...]:
    return (*output[:3], None if output.logits is None else output.logits.tolist())


class PlainSession:
    """A list of tokens. Every answer that its lane gives is checked when it comes.

    tokens: fed or generated. unanswered: jobs in order. may_end: whether jobs may be cancelled just now.
    """

    def __init__(self, lane: Lane, *, source: list[int] | None, bos_id: int | None) -> None:
        self.lane = lane
        self.prefix = [*(source or []), *([] if bos_id is None else [bos_id])]
        self.has_start = bos_id is not None
        self.tokens: list[int] = []
        self.unanswered: list[Job] = []
        self.starts: dict[Job, int | None] = {}
        self.may_end = False
        self.num_generated = 0
        self.results: list[Result] = []

    @property
    def history(self) -> list[int]:
        return self.prefix + self.tokens

    @property
    def generation(self) -> GenerateJob | None:
        """The generation that is under way, if one is."""
        return next((job for job in self.unanswered[:1] if isinstance(job, GenerateJob)), None)

    def take(self, job: Job, result: Result) -> None:
        """Checks one answer."""
        self.results.append(result)
        if isinstance(result, Failed):
            self._failed(job, result)
            return
        assert job is self.unanswered[0], "jobs are answered in the order in which they came"
        if isinstance(job, EncodeJob):
            assert result == Encoded(0)
            self._done(job)
        elif isinstance(job, FeedJob):
            assert isinstance(result, Fed)
            self._fed(job, result)
        elif isinstance(job, GenerateJob):
            assert isinstance(result, Generated)
            self._generated(job, result)

    def _fed(self, job: FeedJob, result: Fed) -> None:
        assert self.starts[job] in (None, len(self.tokens))
        expected = []
        for token in job.tokens:
            self.tokens.append(token)
            expected.append((list(self.history), len(self.tokens)))
        if not (job.outputs.every_position and job.tokens):
            expected = [(self.history, len(self.tokens))]
        if job.outputs.kind is OutputKind.NONE:
            expected = []
        outputs = [output_after(history, job.outputs, position) for history, position in expected]
        assert result.position == len(self.tokens)
        assert [comparable(output) for output in result.outputs] == [comparable(output) for output in outputs]
        self._done(job)

    def _generated(self, job: GenerateJob, result: Generated) -> None:
        assert self.num_generated or self.starts[job] in (None, len(self.tokens))
        token, log_probability = choose(next_logits(self.history), job.decoding, len(self.tokens))
        if token == EOS_ID:
            assert result == Generated(len(self.tokens), None, None, FinishReason.EOS)
            self._done(job)
            return
        self.tokens.append(token)
        self.num_generated += 1
        is_last = self.num_generated == job.decoding.max_tokens
        reason = FinishReason.MAX_TOKENS if is_last else None
        assert result == Generated(len(self.tokens), token, log_probability, reason)
        if is_last:
            self._done(job)

    def _failed(self, job: Job, result: Failed) -> None:
        assert job in self.unanswered, "a job is answered for good only once"
        if isinstance(result.error, PositionMismatchError):
            start = self.starts[job]
            assert job is self.unanswered[0]
            assert start not in (None, len(self.tokens))
            name = "feed" if isinstance(job, FeedJob) else "generate"
            assert (
                result.error.message == f"{name}.position = {start}, but the session is at position {result.position}"
            )
        elif isinstance(result.error, IllegalRequestError):
            assert job is self.unanswered[0]
            assert isinstance(job, GenerateJob)
            assert not self.has_start, "a start token can always be run"
            assert not self.tokens, "there is something to go on from"
        else:
            assert isinstance(result.error, RequestCancelledError | EngineError)
            assert self.may_end or self.lane.closed
            if job is self.unanswered[0] and isinstance(job, FeedJob):
                consumed = result.position - len(self.tokens)
                assert 0 <= consumed <= max(0, len(job.tokens) - 1)
                self.tokens += job.tokens[:consumed]
        assert result.position == len(self.tokens)
        self._done(job)

    def _done(self, job: Job) -> None:
        self.num_generated = 0
        self.unanswered.remove(job)


class World:
    """Lanes, the scheduler and the stepper, and in the runner's place a list of consumed tokens for each lane."""

    def __init__(self, *, bos_id: int | None = BOS_ID, rows: int = 4, tokens: int = 8, chunk: int = 4) -> None:
        self.bos_id = bos_id
        self.scheduler = Scheduler(max_rows=rows, max_tokens=tokens, max_chunk=chunk)
        self.stepper = Stepper(self.scheduler, EOS_ID)
        self.sessions: list[PlainSession] = []
        self.consumed: dict[Lane, list[int]] = {}

    def open(self, source: list[int] | None = None, outputs: OutputSpec | None = None) -> PlainSession:
        lane = Lane(Slot(len(self.sessions) + 1, 0), [] if self.bos_id is None else [self.bos_id])
        session = PlainSession(lane, source=source, bos_id=self.bos_id)
        self.sessions.append(session)
        self.consumed[lane] = []
        if source is not None:
            self._submit(session, EncodeJob(reply=_no_reply, tag=session, source=source), None)
        if outputs is not None:
            self.feed(session, [], outputs, 0)
        return session

    def feed(
        self, session: PlainSession, tokens: list[int], outputs: OutputSpec | None = None, start: int | None = None
    ) -> None:
        outputs = outputs or OutputSpec()
        job = FeedJob(reply=_no_reply, tag=session, start=start, tokens=tokens, outputs=outputs)
        self._submit(session, job, start)

    def generate(
        self, session: PlainSession, decoding: Decoding, window: int = 1000, start: int | None = None
    ) -> GenerateJob:
        job = GenerateJob(reply=_no_reply, tag=session, start=start, decoding=decoding, window=window)
        self._submit(session, job, start)
        return job

    def grant(self, job: GenerateJob, count: int) -> None:
        job.num_granted += count
        if job.parked:
            self.stepper.resume(job.tag.lane, job)
        self._deliver()

    def cancel(self, session: PlainSession) -> int:
        """The number of jobs that were ended."""
        session.may_end = True
        count = self.stepper.cancel(session.lane, RequestCancelledError("cancelled"))
        self._deliver()
        session.may_end = False
        return count

    def close(self, session: PlainSession) -> None:
        session.lane.closed = True
        self.stepper.abandon(session.lane, RequestCancelledError("closed"))
        self._deliver()

    def run(self) -> Batch | None:
        """Runs the next batch, if there is one."""
        batch = self.scheduler.next_batch()
        if batch is None:
            return None
        if batch.kind == "encoder":
            self._encode(batch)
        else:
            self._step(batch)
        self._deliver()
        return batch

    def fail(self, error: CarouselError) -> Batch | None:
        """The next batch's graph fails: nothing is consumed."""
        batch = self.scheduler.next_batch()
        for lane in batch.lanes if batch else ():
            session = next(session for session in self.sessions if session.lane is lane)
            lane.closed = isinstance(lane.job, EncodeJob)  # a session without its source is closed
            session.may_end = True
            self.stepper.abandon(lane, error)
            self._deliver()
            session.may_end = False
        return batch

    def drain(self) -> None:
        """Runs until nothing is left to be done, granting all that is asked for."""
        while any(session.unanswered for session in self.sessions):
            if self.run() is None:
                parked = [job for job in (s.generation for s in self.sessions) if job is not None and job.parked]
                gave = [job for job in parked if job.num_produced > job.num_granted]
                assert gave, "a job is left, and nothing will ever advance it"
                for job in gave:
                    self.grant(job, job.num_produced - job.num_granted)

    def _encode(self, batch: Batch) -> None:
        for lane, width in zip(batch.lanes, batch.widths, strict=True):
            assert isinstance(lane.job, EncodeJob)
            assert width == len(lane.job.source)
            self.consumed[lane] += lane.job.source
            self.stepper.encoded(lane)

    def _step(self, batch: Batch) -> None:
        """As the engine does it, with a row of padding at the end and garbage wherever no token was run."""
        logits = np.full((len(batch.lanes) + 1, max(batch.widths), VOCABULARY_SIZE), np.nan, np.float32)
        for row, (lane, width) in enumerate(zip(batch.lanes, batch.widths, strict=True)):
            for index, token in enumerate(lane.inputs[lane.done : lane.done + width]):
                self.consumed[lane].append(token)
                logits[row, index] = next_logits(self.consumed[lane])
        chosen = self.stepper.choose_together(batch.lanes, batch.widths, logits)
        for row, (lane, width) in enumerate(zip(batch.lanes, batch.widths, strict=True)):
            self.stepper.stepped(lane, width, logits[row], chosen.get(row))
        logits[:] = np.nan  # they are the runner's; what is to be kept must have been copied

    def _submit(self, session: PlainSession, job: Job, start: int | None) -> None:
        session.unanswered.append(job)
        session.starts[job] = start
        self.stepper.submit(session.lane, job)
        self._deliver()

    def _deliver(self) -> None:
        results, self.stepper.results = self.stepper.results, []
        for job, result in results:
            job.tag.take(job, result)


def _no_reply(job: Job, result: Result) -> None:
    raise AssertionError("the stepper collects results and calls nobody")
