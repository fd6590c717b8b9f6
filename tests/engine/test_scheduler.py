"""The scheduler's rules, compared with a plain list of waiting jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.engine.jobs import Lane
from service.engine.results import StepResult
from service.engine.scheduler import Batch, RowJob, Scheduler
from service.errors import CarouselError
from service.observer import GraphKind

NUM_LANES = 12
LANES = st.integers(0, NUM_LANES - 1)
TOKENS = st.sampled_from([1] * 200 + [*range(1, 201)])
KINDS = st.sampled_from(["step", "step", "encoder"])
LIMITS = st.fixed_dictionaries(
    {"max_rows": st.integers(1, 8), "max_tokens": st.integers(1, 64), "max_chunk": st.integers(1, 32)}
)


class Row(RowJob):
    """A job of which the scheduler uses only the ticket."""

    def __init__(self) -> None:
        self.ticket = 0
        self.runs_on = False

    def take(self, result: StepResult, row: int, width: int) -> None:
        raise AssertionError("the scheduler runs nothing")

    def abandon(self, lane: Lane, error: CarouselError) -> None:
        raise AssertionError("the scheduler ends nothing")


def rows(count: int) -> list[RowJob]:
    return [Row() for _ in range(count)]


def bucket(width: int) -> int:
    """Returns the smallest power of two that is not below `width`."""
    power = 1
    while power < width:
        power *= 2
    return power


@dataclass
class Waiting:
    """A waiting job. num_ahead: jobs that waited when it was added; num_batches: batches since then."""

    index: int
    kind: GraphKind
    width: int
    num_ahead: int
    num_batches: int = 0

    @property
    def queue(self) -> tuple[GraphKind, int]:
        return self.kind, bucket(self.width)


class SchedulerMachine(RuleBasedStateMachine):
    """Adds and removes jobs and takes batches in any order."""

    @initialize(limits=LIMITS)
    def begin(self, limits: dict[str, int]) -> None:
        self.limits = limits
        self.scheduler = Scheduler(**limits)
        self.rows = rows(NUM_LANES)
        self.waiting: list[Waiting] = []

    @rule(index=LANES, kind=KINDS, num_tokens=TOKENS)
    def add(self, index: int, kind: GraphKind, num_tokens: int) -> None:
        if any(entry.index == index for entry in self.waiting):
            with pytest.raises(ValueError, match="the job already waits"):
                self.scheduler.add(kind, self.rows[index], num_tokens)
            return
        self.scheduler.add(kind, self.rows[index], num_tokens)
        width = min(num_tokens, self.limits["max_chunk"]) if kind == "step" else num_tokens
        self.waiting.append(Waiting(index, kind, width, len(self.waiting)))

    @rule(index=LANES)
    def remove(self, index: int) -> None:
        self.scheduler.remove(self.rows[index])
        self.waiting = [entry for entry in self.waiting if entry.index != index]

    @precondition(lambda self: self.waiting)
    @rule()
    def take(self) -> None:
        batch = self.scheduler.next_batch()
        assert batch is not None, "somebody waits"
        indices = [self.rows.index(lane) for lane in batch.jobs]
        oldest = self.waiting[0]
        queue = [entry for entry in self.waiting if entry.queue == oldest.queue]
        assert indices == [entry.index for entry in queue[: len(indices)]], "the oldest head's queue, from its head"
        assert batch.kind == oldest.kind
        assert batch.widths == [entry.width for entry in queue[: len(indices)]]
        room = min(self.limits["max_rows"], max(1, self.limits["max_tokens"] // bucket(oldest.width)))
        assert len(indices) == min(room, len(queue)), "as many as fit, and no more"
        assert len(indices) == 1 or len(indices) * bucket(max(batch.widths)) <= self.limits["max_tokens"]
        self.waiting = [entry for entry in self.waiting if entry.index not in indices]
        for entry in self.waiting:
            entry.num_batches += 1

    @precondition(lambda self: not self.waiting)
    @rule()
    def take_nothing(self) -> None:
        assert self.scheduler.next_batch() is None

    @invariant()
    def nobody_starves(self) -> None:
        """Each batch takes at least one of the jobs that were added before a waiting one."""
        assert all(entry.num_batches <= entry.num_ahead for entry in getattr(self, "waiting", []))

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "scheduler"):
            assert len(self.scheduler) == len(self.waiting)

    def teardown(self) -> None:
        if hasattr(self, "scheduler"):
            while self.waiting:
                self.take()
            assert self.scheduler.next_batch() is None


SchedulerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestScheduler = SchedulerMachine.TestCase


def taken(batch: Batch | None, known: list[RowJob]) -> tuple[Any, ...] | None:
    return None if batch is None else (batch.kind, [known.index(lane) for lane in batch.jobs], batch.widths)


@given(
    limits=LIMITS,
    calls=st.lists(
        st.one_of(
            st.tuples(st.just("add"), LANES, KINDS, TOKENS),
            st.tuples(st.just("remove"), LANES),
            st.tuples(st.just("take")),
        ),
        max_size=40,
    ),
)
@settings(max_examples=30, deadline=None)
def test_the_same_calls_give_the_same_batches(limits: dict[str, int], calls: list[tuple[Any, ...]]) -> None:
    def play() -> list[Any]:
        scheduler, known, batches = Scheduler(**limits), rows(NUM_LANES), []
        for name, *arguments in calls:
            if name == "take":
                batches.append(taken(scheduler.next_batch(), known))
            elif name == "remove":
                scheduler.remove(known[arguments[0]])
            elif not known[arguments[0]].ticket:
                scheduler.add(arguments[1], known[arguments[0]], arguments[2])
        return batches

    assert play() == play()


def test_a_long_feed_delays_the_single_steps_of_others_by_one_chunk_at_a_time() -> None:
    scheduler = Scheduler(max_rows=8, max_tokens=64, max_chunk=32)
    long, short, other = rows(3)
    remaining = 320
    scheduler.add("step", long, remaining)
    widths = []
    for _ in range(20):
        for lane in (short, other):
            if not lane.ticket:
                scheduler.add("step", lane, 1)
        batch = scheduler.next_batch()
        assert batch is not None
        widths.append(batch.widths)
        if batch.jobs == [long]:
            remaining -= batch.widths[0]
            if remaining:
                scheduler.add("step", long, remaining)
    assert widths == [[32], [1, 1]] * 10, "a chunk of the long feed, then the single tokens, in turn"


def test_a_wide_lane_never_widens_a_batch_of_single_tokens() -> None:
    scheduler = Scheduler(max_rows=8, max_tokens=256, max_chunk=32)
    first, wide, second = rows(3)
    scheduler.add("step", first, 1)
    scheduler.add("step", wide, 2)
    scheduler.add("step", second, 1)
    batches = [scheduler.next_batch(), scheduler.next_batch()]
    assert [batch.jobs for batch in batches if batch] == [[first, second], [wide]]


def test_an_encoder_and_a_step_of_the_same_width_go_in_batches_of_their_own() -> None:
    scheduler = Scheduler(max_rows=8, max_tokens=256, max_chunk=32)
    encoding, stepping = rows(2)
    scheduler.add("encoder", encoding, 4)
    scheduler.add("step", stepping, 4)
    batches = [scheduler.next_batch(), scheduler.next_batch()]
    assert [(batch.kind, batch.jobs) for batch in batches if batch] == [
        ("encoder", [encoding]),
        ("step", [stepping]),
    ]


def test_a_source_is_never_cut() -> None:
    scheduler = Scheduler(max_rows=8, max_tokens=16, max_chunk=4)
    (lane,) = rows(1)
    scheduler.add("encoder", lane, 1000)
    batch = scheduler.next_batch()
    assert batch is not None
    assert batch.widths == [1000]


def test_a_lane_removed_and_added_again_has_lost_its_turn() -> None:
    scheduler = Scheduler(max_rows=1, max_tokens=1, max_chunk=1)
    first, second = rows(2)
    scheduler.add("step", first, 1)
    scheduler.add("step", second, 1)
    scheduler.remove(first)
    scheduler.remove(first)
    scheduler.add("step", first, 1)
    batches = [scheduler.next_batch() for _ in range(3)]
    assert [batch and batch.jobs for batch in batches] == [[second], [first], None]
