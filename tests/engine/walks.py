"""Lanes over a made-up model. A plain session beside each lane checks every result."""

from __future__ import annotations

import numpy as np

from service.engine.arena import Slot
from service.engine.beam import BeamSearch
from service.engine.decoding import Decoding
from service.engine.generations import choose_together, resume_generation
from service.engine.history import History
from service.engine.jobs import (
    EncodeJob,
    FeedJob,
    GenerateJob,
    Job,
    Lane,
    OutputSpec,
    ScoreJob,
    SearchJob,
    StepBatchJob,
)
from service.engine.kinds import add_kinds
from service.engine.results import LOGITS, NEXT_TOKEN, FetchSpec, Result, Stepped, StepResult
from service.engine.scheduler import Batch, Group, Scheduler
from service.engine.step_batches import ActiveStepBatch, submit_step_batch
from service.engine.stepper import Stepper
from service.errors import CarouselError, RequestCancelledError
from tests.domain import ids
from tests.engine.plain import BOS_ID, EOS_ID, VOCABULARY_SIZE, PlainSession, next_logits

_FIRST_FORK = 100


class World:
    """Lanes, the scheduler and the stepper. In place of the runner, each row has a list of consumed tokens."""

    def __init__(
        self,
        *,
        bos_id: int | None = BOS_ID,
        rows: int = 4,
        tokens: int = 8,
        chunk: int = 4,
        has_readout: bool = False,
    ) -> None:
        self.bos_id = bos_id
        self.scheduler = Scheduler(max_rows=rows, max_tokens=tokens, max_chunk=chunk)
        self.stepper = Stepper(
            self.scheduler, EOS_ID, has_readout=has_readout, has_start=bos_id is not None, release=self._release
        )
        add_kinds(self.stepper, self._fork, History(None, self.stepper.read))
        self.batches: dict[Job, ActiveStepBatch] = {}
        self.sessions: list[PlainSession] = []
        self.state: dict[int, list[int]] = {}
        self.forks: set[Slot] = set()
        self.num_forked = 0

    def consumed(self, session: PlainSession) -> list[int]:
        """Returns the tokens that the session's state has consumed."""
        return self.state[session.lane.slot.row]

    def open(self, source: list[int] | None = None, outputs: OutputSpec | None = None) -> PlainSession:
        lane = Lane(Slot(len(self.sessions) + 1, 0), [] if self.bos_id is None else [self.bos_id])
        session = PlainSession(lane, source=source, bos_id=self.bos_id)
        self.sessions.append(session)
        self.state[lane.slot.row] = []
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

    def search(self, session: PlainSession, beam_size: int, max_tokens: int, start: int | None = None) -> None:
        def search() -> BeamSearch:
            return BeamSearch(beam_size, max_tokens, EOS_ID, num_best=beam_size)

        slots = self._acquire(beam_size)
        job = SearchJob(reply=_no_reply, tag=session, start=start, search=search(), slots=slots)
        session.searches[job] = search()
        self._submit(session, job, start)

    def score(self, session: PlainSession, targets: list[list[int]], start: int | None = None) -> None:
        slots = self._acquire(len(targets))
        job = ScoreJob(reply=_no_reply, tag=session, start=start, targets=targets, slots=slots)
        self._submit(session, job, start)

    def step_batch(
        self,
        sessions: list[PlainSession],
        tokens: list[int],
        counts: list[int] | None = None,
        starts: list[int] | None = None,
        outputs: OutputSpec | None = None,
    ) -> StepBatchJob:
        lanes = [session.lane for session in sessions]
        job = StepBatchJob(
            reply=_no_reply,
            tag=sessions,
            lanes=lanes,
            starts=starts,
            tokens=tokens,
            counts=counts,
            outputs=outputs or OutputSpec(),
        )
        for place, session in enumerate(sessions):
            session.unanswered.append(job)
            session.starts[job] = None if starts is None else starts[place]
        self.batches[job] = submit_step_batch(self.stepper, job, VOCABULARY_SIZE)
        self._deliver()
        return job

    def grant(self, job: GenerateJob, count: int) -> None:
        job.num_granted += count
        if job.is_parked:
            resume_generation(job.tag.lane, job)
        self._deliver()

    def cancel(self, session: PlainSession) -> int:
        """Cancels the jobs of a session. Returns the number of jobs that ended."""
        session.ends()
        count = self.stepper.cancel(session.lane, RequestCancelledError("cancelled"))
        self._deliver()
        return count

    def close(self, session: PlainSession) -> None:
        error = RequestCancelledError("closed")
        session.lane.is_closed, session.lane.refusal = True, error
        self.stepper.abandon(session.lane, error)
        self._deliver()

    def run(self) -> Batch | None:
        """Runs the next batch. Returns it, or None when there is none."""
        batch = self.scheduler.next_batch()
        if batch is None:
            return None
        if batch.kind == "encoder":
            self._encode(batch)
        elif batch.kind == "readout":
            self._read_out(batch)
        else:
            self._step(batch)
        self._deliver()
        return batch

    def fail(self, error: CarouselError) -> list[PlainSession]:
        """Lets the graph of the next batch fail: nothing is consumed. Returns the sessions that took part in the
        batch."""
        batch = self.scheduler.next_batch()
        assert batch is not None
        lanes = [job.lane.forked_from or job.lane for job in batch.jobs]
        for group in batch.groups:
            lanes += self._lanes_of(group)
        failed = [session for session in self.sessions if session.lane in lanes]
        for session in failed:
            if any(isinstance(job, EncodeJob) for job in session.unanswered):
                session.lane.is_closed, session.lane.refusal = True, error  # a session without its source is closed
            session.ends()
        for job in batch.jobs:
            if job.lane.active is job:
                self.stepper.abandon(job.lane, error)
        for group in batch.groups:
            group.owner.fail_group(group, error)
        self._deliver()
        return failed

    def drain(self) -> None:
        """Runs until no work is left, and grants each parked generation the tokens that it produced."""
        while any(session.unanswered for session in self.sessions):
            if self.run() is None:
                parked = [job for job in (s.generation for s in self.sessions) if job is not None and job.is_parked]
                gave = [job for job in parked if job.num_produced > job.num_granted]
                assert gave, "a job is left, and nothing will ever advance it"
                for job in gave:
                    self.grant(job, job.num_produced - job.num_granted)

    def _encode(self, batch: Batch) -> None:
        for job, width in zip(batch.jobs, batch.widths, strict=True):
            assert width == len(job.source)
            self.state[job.lane.slot.row] += ids(job.source)
            job.take(StepResult(None), 0, width)

    def _step(self, batch: Batch) -> None:
        """Runs a batch of steps as the engine does, with a padded row at the end and NaN wherever no token was run."""
        assert batch.num_rows == len(batch.jobs) + sum(len(group.tokens) for group in batch.groups)
        logits = np.full((batch.num_rows + 1, batch.width, VOCABULARY_SIZE), np.nan, np.float32)
        following: dict[int, list[int]] = {}
        rows = zip(batch.jobs, batch.widths, strict=True)
        for row, (job, width) in enumerate(rows):
            consumed = following[job.lane.slot.row] = list(self.state[job.lane.slot.row])
            for index, token in enumerate(ids(job.inputs[job.done : job.done + width])):
                consumed.append(token)
                logits[row, index] = next_logits(consumed)
        row = len(batch.jobs)
        for group in batch.groups:
            for read, write, token in zip(group.reads, group.writes, ids(group.tokens), strict=True):
                assert write not in following, "two rows of a batch write to one slot"
                following[write] = [*self.state[read], token]
                logits[row, 0] = next_logits(following[write])
                row += 1
        self.state.update(following)
        self._commit(batch, logits)
        logits[:] = np.nan  # the runner reuses its logits, so the stepper must have copied what it keeps

    def _read_out(self, batch: Batch) -> None:
        self._commit(batch, np.array([[next_logits(self.state[job.lane.slot.row])] for job in batch.jobs]))

    def _commit(self, batch: Batch, logits: np.ndarray) -> None:
        fetch = LOGITS if self.stepper.keeps_logits else NEXT_TOKEN
        for member in (*(job.fetch for job in batch.jobs), *(group.fetch for group in batch.groups)):
            fetch |= member
        result = self._result(batch, logits, fetch)
        if fetch.has_choices:
            result.chosen = choose_together(result, batch.jobs, batch.widths)
        for row, (job, width) in enumerate(zip(batch.jobs, batch.widths, strict=True)):
            job.take(result, row, width)
        begin = len(batch.jobs)
        for group in batch.groups:
            count = len(group.tokens)
            group.owner.take_group(group, result, begin)
            begin += count

    def _result(self, batch: Batch, logits: np.ndarray, fetch: FetchSpec) -> StepResult:
        """Makes the result. With a readout, the graph also has heads, and returns logits only on request."""
        if self.stepper.keeps_logits or batch.kind == "readout":
            return StepResult(logits)
        return StepResult(logits if fetch.logits or fetch.top_k else None, np.argmax(logits, axis=-1))

    def _lanes_of(self, group: Group) -> list[Lane]:
        """Returns the lanes of a group's rows. For a search, that is the lane of its session."""
        job = group.owner.job
        if isinstance(job, StepBatchJob):
            return [job.lanes[place] for place in group.places]
        return [session.lane for session in self.sessions if session.lane.active is group.owner]

    def _acquire(self, count: int) -> list[Slot]:
        slots = [Slot(_FIRST_FORK + self.num_forked + index, 0) for index in range(count)]
        self.num_forked += count
        self.forks |= set(slots)
        return slots

    def _fork(self, row: int, rows: list[int]) -> None:
        for fork in rows:
            self.state[fork] = list(self.state[row])

    def _release(self, slot: Slot) -> None:
        self.forks.remove(slot)
        self.state.pop(slot.row, None)

    def _submit(self, session: PlainSession, job: Job, start: int | None) -> None:
        session.unanswered.append(job)
        session.starts[job] = start
        self.stepper.submit(session.lane, job)
        self._deliver()

    def _deliver(self) -> None:
        self.stepper.settle()
        for job, result in self.stepper.take_results().entries:
            assert job is not None
            sessions = job.tag if isinstance(job, StepBatchJob) else [job.tag]
            for place, session in enumerate(sessions):
                self._report_lost(session, job)
                if isinstance(job, StepBatchJob):
                    assert isinstance(result, Stepped)
                    session.take_row(job, result, place)
                else:
                    assert not isinstance(result, Stepped)
                    session.take(job, result)
        for session in self.sessions:
            self._report_lost(session, None)

    def _report_lost(self, session: PlainSession, job: Job | None) -> None:
        """Records in a session which rows of its step batches have failed, because it continues before these batches
        have their result.

        Covers the step batches before `job`, or all for None. If `job` is a step batch, its failed row may have been
        recorded before.
        """
        if job is not None and job not in session.unanswered:
            return
        for batch in list(session.unanswered):
            if batch is job:
                return
            if isinstance(batch, StepBatchJob):
                active = self.batches[batch]
                for place, error in active.errors.items():
                    if batch.tag[place] is session:
                        session.lose_row(batch, place, error, active.positions[place])


def _no_reply(job: Job, result: Result) -> None:
    raise AssertionError("the stepper collects results and calls nobody")
