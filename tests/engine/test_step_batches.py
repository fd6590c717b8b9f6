"""A step batch takes time linear in its lanes, whichever rows fail and whichever lanes close."""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import thread_time

import numpy as np
import pytest

from service.engine.arena import Slot
from service.engine.jobs import Job, Lane, OutputSpec, StepBatchJob
from service.engine.results import Stepped, StepResult
from service.engine.scheduler import Scheduler
from service.engine.step_batches import submit_step_batch
from service.engine.stepper import Stepper
from service.errors import PositionMismatchError, RequestCancelledError

GONE = RequestCancelledError("gone")


class Rig:
    """A stepper with many idle lanes."""

    def __init__(self, size: int) -> None:
        self.stepper = Stepper(Scheduler(max_rows=256, max_tokens=256, max_chunk=32), None, has_readout=True)
        self.lanes = [Lane(Slot(row + 1, 0), []) for row in range(size)]

    def submit(self, *, starts: list[int] | None = None, counts: list[int] | None = None) -> StepBatchJob:
        size = len(self.lanes) if counts is None else sum(counts)
        job = StepBatchJob(
            reply=_no_reply, lanes=self.lanes, starts=starts, tokens=[1] * size, counts=counts, outputs=OutputSpec()
        )
        submit_step_batch(self.stepper, job, 4)
        self.stepper.settle()
        return job

    def leave(self, lane: Lane) -> None:
        lane.is_closed, lane.refusal = True, GONE
        self.stepper.abandon(lane, GONE)
        self.stepper.settle()

    def run(self) -> bool:
        """Runs the next batch. All its next tokens are 3. Returns whether there was a batch."""
        batch = self.stepper.scheduler.next_batch()
        if batch is None:
            return False
        tokens = np.full((batch.num_rows, batch.width), 3)
        result = StepResult(None, tokens)
        for row, (job, width) in enumerate(zip(batch.jobs, batch.widths, strict=True)):
            job.take(result, row, width)
        begin = len(batch.jobs)
        for group in batch.groups:
            assert len(group.tokens) == len(group.reads) == len(group.places)
            group.owner.take_group(group, result, begin)
            begin += len(group.tokens)
        self.stepper.settle()
        return True

    def drain(self) -> list[Stepped]:
        while self.run():
            pass
        return [result for job, result in self.stepper.take_results().entries if job is not None]


def _no_reply(job: Job, result: Stepped) -> None:
    raise AssertionError("the stepper calls nobody")


def leave_before_it_runs(rig: Rig) -> None:
    rig.submit()
    for lane in reversed(rig.lanes):
        rig.leave(lane)
    (stepped,) = rig.drain()
    assert [place for place, _ in stepped.errors] == list(range(len(rig.lanes)))


def leave_between_its_groups(rig: Rig) -> None:
    rig.submit()
    rig.run()
    for lane in rig.lanes[::2]:
        rig.leave(lane)
    (stepped,) = rig.drain()
    failed = {place for place, _ in stepped.errors}
    assert failed == set(range(256, len(rig.lanes), 2)), "a row that was run already is answered"
    assert all((token == 0) == (place in failed) for place, token in enumerate(stepped.token_ids))


def leave_with_a_chain_behind(rig: Rig) -> None:
    for _ in range(3):
        rig.submit()
    for lane in rig.lanes:
        rig.leave(lane)
    assert [len(stepped.errors) for stepped in rig.drain()] == [len(rig.lanes)] * 3


def all_positions_wrong(rig: Rig) -> None:
    rig.submit(starts=[7] * len(rig.lanes))
    (stepped,) = rig.drain()
    assert all(isinstance(error, PositionMismatchError) for _, error in stepped.errors)
    assert len(stepped.errors) == len(rig.lanes)


def counts_given(rig: Rig) -> None:
    rig.stepper.scheduler.max_rows = 1  # one row per batch, so there are as many groups as lanes
    rig.submit(counts=[1] * len(rig.lanes))
    (stepped,) = rig.drain()
    assert stepped.token_ids == [3] * len(rig.lanes)


CASES = [leave_before_it_runs, leave_between_its_groups, leave_with_a_chain_behind, all_positions_wrong, counts_given]


@pytest.mark.parametrize("case", CASES)
def test_a_step_batch_of_many_more_lanes_takes_no_longer_for_each(case: Callable[[Rig], None]) -> None:
    """With sixteen times as many lanes, linear work takes sixteen times as long, and quadratic work 256 times."""

    def seconds(size: int) -> float:
        best = float("inf")
        gc.disable()  # a collection takes longer the more objects exist
        try:
            for _ in range(3):
                rig = Rig(size)
                began = thread_time()
                case(rig)
                best = min(best, thread_time() - began)
        finally:
            gc.enable()
        return best

    assert seconds(8_000) < 64 * seconds(500)


def test_a_long_chain_whose_rows_all_fail_is_answered_in_order_without_recursion() -> None:
    rig = Rig(2)
    jobs = [rig.submit(starts=[0, 0])]
    jobs += [rig.submit(starts=[9, 9]) for _ in range(3000)]
    rig.run()
    entries = rig.stepper.take_results().entries
    assert [job for job, _ in entries] == jobs
    assert not entries[0][1].errors
    assert all(len(result.errors) == 2 for _, result in entries[1:])


def test_rows_that_leave_do_not_shift_the_answers_of_the_others() -> None:
    rig = Rig(5)
    rig.submit()
    rig.leave(rig.lanes[3])
    rig.leave(rig.lanes[0])
    (stepped,) = rig.drain()
    assert stepped.token_ids == [0, 3, 3, 0, 3]
    assert stepped.positions == [0, 1, 1, 0, 1]
    assert [place for place, _ in stepped.errors] == [0, 3]


def test_a_cancel_does_not_count_a_step_batch_whose_row_has_run() -> None:
    rig = Rig(2)
    rig.stepper.scheduler.max_rows = 1  # one row per batch
    rig.submit()
    rig.run()
    assert [rig.stepper.cancel(lane, GONE) for lane in rig.lanes] == [0, 1]
    (stepped,) = rig.drain()
    assert stepped.errors == [(1, GONE)]
