"""Drives the core step by step, without a thread or an event loop. Results come out in order."""

from __future__ import annotations

import asyncio
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from service.engine.beam import BeamSearch
from service.engine.commands import Cancel, Close, Read, Submit, SubmitStepBatch, Write
from service.engine.core import EngineCore, Progress
from service.engine.decoding import Decoding
from service.engine.engine import Engine
from service.engine.jobs import FeedJob, GenerateJob, Job, Lane, OutputKind, OutputSpec, SearchJob, StepBatchJob
from service.engine.limits import EngineLimits
from service.engine.results import Failed, Fed, Generated, LaneState, Searched, Stepped
from service.errors import EngineError, IllegalRequestError, NoSlotError, RequestCancelledError
from service.observer import BatchReport
from service.repository.manifest import BASE_VARIANT
from tests.domain import ids
from tests.engine.arithmetic import ArithmeticGraph, arithmetic_bundle, plain_tokens
from tests.engine.calling import Recorder, running
from tests.waiting import turns, wait_until

BOS_ID = 1
LIMITS = EngineLimits(num_slots=8, num_forks=8, max_batch_rows=4, max_chunk_tokens=4)


class Hand:
    """Drives a core, and records its results."""

    def __init__(self) -> None:
        self.graph = ArithmeticGraph()
        self.recorder = Recorder()
        self.faults: list[Exception] = []
        self.core = EngineCore(arithmetic_bundle(self.graph), BASE_VARIANT, LIMITS, self.recorder, self.faults.append)
        self.out: list[Any] = []

    def open(self) -> Lane:
        slot = self.core.arena.acquire()
        assert slot is not None
        return Lane(slot, [BOS_ID])

    def ask(self, *commands: Any) -> None:
        self.core.inbox.extend(commands)

    def step(self) -> Progress:
        progress = self.core.step()
        for job, result in self.core.take_results().entries:
            if job is None:
                result()
            else:
                self.out.append((job.tag, result))
        return progress

    def drain(self) -> None:
        for _ in range(1000):
            if self.step() is Progress.IDLE:
                return
        raise AssertionError("it never ends")


def feed(tag: str, tokens: list[int], start: int | None = None) -> FeedJob:
    return FeedJob(reply=_no_reply, tag=tag, start=start, tokens=tokens, outputs=OutputSpec())


def generate(tag: str, count: int) -> GenerateJob:
    return GenerateJob(reply=_no_reply, tag=tag, start=None, decoding=Decoding(count), window=100)


def _no_reply(job: Job, result: Any) -> None:
    raise AssertionError("the core calls nobody")


def test_a_core_is_driven_by_hand_and_answers_in_order() -> None:
    hand = Hand()
    first, second = hand.open(), hand.open()
    hand.ask(Submit(first, feed("a", [2, 3])), Submit(second, feed("b", [4])), Submit(first, generate("c", 3)))
    hand.drain()
    assert [tag for tag, _ in hand.out if tag != "b"] == ["a", "c", "c", "c"]
    tokens = [token for tag, result in hand.out if tag == "c" for token in result.token_ids]
    assert tokens == plain_tokens(BOS_ID, [2, 3], 3)
    assert hand.step() is Progress.IDLE
    assert not hand.core.has_work


def test_every_command_is_carried_out_in_the_step_that_finds_it() -> None:
    hand = Hand()
    lane, other = hand.open(), hand.open()
    read: list[LaneState | None] = []
    calls: list[Any] = []
    hand.ask(Submit(lane, feed("long", [2] * 9)), Submit(lane, feed("behind", [3])))
    assert hand.step() is Progress.RAN
    hand.ask(Cancel(lane, RequestCancelledError("cancelled"), lambda count: calls.append(("cancelled", count))))
    hand.ask(Read([lane], read.extend))
    hand.ask(Submit(lane, feed("next", [5])))
    hand.drain()
    assert calls == [("cancelled", 2)]
    assert [type(result) for _, result in hand.out] == [Failed, Failed, Fed]
    state = read[0]
    assert state is not None
    assert state.position == 3, "a chunk of four, the first of which was the start token"
    hand.ask(Write(other, state), Submit(other, feed("copy", [5])))
    batch = StepBatchJob(
        reply=_no_reply, tag="batch", lanes=[lane, other], starts=None, tokens=[1, 1], counts=None, outputs=OutputSpec()
    )
    hand.ask(SubmitStepBatch(batch))
    hand.drain()
    (_, fed), (_, copied), (_, stepped) = hand.out[-3:]
    assert copied == fed
    assert isinstance(stepped, Stepped)
    assert stepped.token_ids[0] == stepped.token_ids[1]
    error = IllegalRequestError("gone")
    hand.ask(Submit(lane, generate("late", 50)))
    hand.ask(Close(lane, error, lambda: calls.append("closed")), Close(lane, error, lambda: calls.append("again")))
    hand.ask(Submit(lane, feed("later", [1])))
    hand.drain()
    assert calls[1:] == ["closed", "again"]
    assert hand.out[-2:] == [("late", Failed(lane.position, error)), ("later", Failed(lane.position, error))]


def test_a_batch_that_is_not_small_waits_for_a_step_that_may_run_it() -> None:
    hand = Hand()
    lane = hand.open()
    hand.ask(Submit(lane, generate("g", 2)))
    assert hand.core.step(small_only=True) is Progress.DEFERRED
    hand.ask(Close(lane, RequestCancelledError("closed"), None))
    assert hand.core.step() is Progress.RAN, "a deferred batch is run before its lanes may be closed"
    assert hand.open().slot.row != lane.slot.row
    hand.drain()
    assert hand.open().slot.row == lane.slot.row, "it is freed, and used first"
    assert [type(result) for _, result in hand.out] == [Generated, Failed]


def test_a_run_that_raises_fails_its_batch_and_leaves_its_lanes_as_they_were() -> None:
    hand = Hand()
    lane = hand.open()
    hand.ask(Submit(lane, feed("a", [2])))
    hand.drain()
    hand.graph.error = RuntimeError("no memory")
    hand.ask(Submit(lane, feed("b", [3])))
    hand.drain()
    (_, result) = hand.out[-1]
    assert isinstance(result, Failed)
    assert isinstance(result.error, EngineError)
    assert result.position == 1
    hand.ask(Submit(lane, generate("c", 2)))
    hand.drain()
    assert [token for tag, one in hand.out if tag == "c" for token in one.token_ids] == plain_tokens(BOS_ID, [2], 2)


async def test_an_engine_without_a_thread_runs_everything_on_the_event_loop() -> None:
    num_threads = threading.active_count()
    loop = asyncio.get_running_loop()
    engine = Engine(
        arithmetic_bundle(ArithmeticGraph()), LIMITS, Recorder(), loop, lambda error: None, inline_only=True
    )
    engine.start()
    assert threading.active_count() == num_threads
    lane = engine.open()
    tokens: list[int] = []
    done = asyncio.Event()

    def reply(job: Job, result: Any) -> None:
        tokens.extend(result.token_ids)
        if result.finish_reason is not None:
            done.set()

    engine.submit(lane, feed_replied([2] * 20))
    engine.submit(lane, GenerateJob(reply=reply, start=None, decoding=Decoding(30), window=100))
    await done.wait()
    assert tokens == plain_tokens(BOS_ID, [2] * 20, 30)
    assert engine.statistics.num_threaded == 0
    assert threading.active_count() == num_threads
    engine.stop()


async def test_a_fed_token_of_a_lone_session_crosses_few_calls_and_files() -> None:
    """Counts Python calls into the engine's files with the interpreter's profiler, from `submit` to the job's reply,
    after a warm-up."""
    loop = asyncio.get_running_loop()
    limits = replace(LIMITS, inline_s=10.0)
    engine = Engine(arithmetic_bundle(ArithmeticGraph()), limits, Recorder(), loop, lambda error: None)
    engine.start()
    lane = engine.open()
    calls: list[str] = []
    answers: list[Any] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.parent.name == "engine" and path.parent.parent.name == "service":
            calls.append(path.name)

    for _ in range(40):
        calls.clear()
        sys.setprofile(profile)
        engine.submit(
            lane,
            FeedJob(reply=lambda job, result: answers.append(result), start=None, tokens=[2], outputs=OutputSpec()),
        )
        engine.run_inline_if_lone(lane)
        sys.setprofile(None)
        await turns(3)  # the turns in which the engine would otherwise have run the batch
    engine.stop()
    assert len(answers) == 40
    assert len(calls) <= 26
    assert len(set(calls)) <= 7


def feed_replied(tokens: list[int]) -> FeedJob:
    return FeedJob(reply=lambda job, result: None, start=None, tokens=tokens, outputs=OutputSpec(OutputKind.NONE))


async def test_a_read_comes_after_what_was_produced_before_it_and_before_what_was_produced_after(
    tiny_repository: Path,
) -> None:
    """A copy contains exactly the tokens delivered before it, also while a generation runs in bursts on the thread."""
    async with running(tiny_repository / "tiny-endless" / "1") as caller:
        lane = caller.engine.open()
        delivered: list[int] = []
        reads: list[tuple[int, int]] = []

        def reply(job: Job, result: Any) -> None:
            if isinstance(result, Generated):
                delivered.extend(ids(result.token_ids))

        async def read() -> None:
            copied: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()

            def then(states: list[LaneState | None]) -> None:
                (state,) = states
                assert state is not None
                copied.set_result((state.num_produced, len(delivered)))

            caller.engine.read([lane], then)
            reads.append(await copied)

        job = GenerateJob(reply=reply, start=None, decoding=Decoding(100_000), window=1_000_000)
        caller.engine.submit(lane, job)
        for _ in range(40):
            await read()
        await caller.closed(lane)
    assert all(produced == num_delivered for produced, num_delivered in reads)
    assert reads[-1][0] > reads[0][0], "it went on meanwhile"


def test_a_feed_that_fails_in_a_later_chunk_does_not_claim_an_unchanged_session() -> None:
    hand = Hand()
    lane = hand.open()
    hand.ask(Submit(lane, feed("long", [2] * 9)))
    hand.step()
    hand.graph.error = RuntimeError("no memory")
    hand.drain()
    ((_, result),) = hand.out
    assert isinstance(result, Failed)
    assert result.position == lane.position == 3, "a chunk of four, the first of which was the start token"
    assert "read the session's position" in str(result.error)


def test_the_callback_of_a_command_that_raises_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    hand = Hand()
    lane, other = hand.open(), hand.open()
    calls: list[Any] = []
    hand.ask(Submit(lane, feed("a", [2])), Submit(other, feed("b", [2])))
    hand.drain()

    def raises(*_: object) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(hand.core.arena, "read", raises)
    for name in ("cancel", "abandon"):
        monkeypatch.setattr(hand.core.stepper, name, raises)
    hand.ask(Read([lane, other], calls.append))
    hand.ask(Cancel(lane, RequestCancelledError("cancelled"), calls.append))
    hand.ask(Close(other, IllegalRequestError("gone"), lambda: calls.append("closed")))
    hand.drain()
    assert calls == [[None, None], 0, "closed"]
    assert len(hand.faults) == 3


class Holding(Recorder):
    """Holds the engine's thread after each batch until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.ran, self.goes_on = threading.Semaphore(0), threading.Semaphore(0)

    def batch_ran(self, report: BatchReport) -> None:
        super().batch_ran(report)
        self.ran.release()
        assert self.goes_on.acquire(timeout=20)


async def test_slots_that_a_search_has_given_back_are_not_taken_for_those_of_sessions() -> None:
    """The search's result and the end of its session are still on their way to the event loop, which the test does not
    give a turn meanwhile."""
    limits = replace(LIMITS, num_slots=1, inline_s=0.0)
    loop, recorder = asyncio.get_running_loop(), Holding()
    engine = Engine(arithmetic_bundle(ArithmeticGraph()), limits, recorder, loop, lambda error: None)
    engine.start()
    lane = engine.open()
    search = BeamSearch(4, 2, None)
    answers: asyncio.Queue[Any] = asyncio.Queue()

    def reply(job: Job, result: Any) -> None:
        answers.put_nowait(result)

    engine.submit(lane, SearchJob(reply=reply, start=None, search=search, slots=engine.acquire_forks(4)))
    await asyncio.to_thread(recorder.ran.acquire)  # the start token; the engine's thread drives from now on
    recorder.goes_on.release()
    recorder.ran.acquire()  # the beams
    recorder.goes_on.release()
    recorder.ran.acquire()  # the session consumes the result
    with pytest.raises(NoSlotError):
        engine.open()
    assert (engine.statistics.slots_used, engine.statistics.forks_used) == (1, 4)
    engine.close(lane)
    recorder.goes_on.release()
    wait_until(lambda: engine.statistics.slots_used == 0)
    assert engine.statistics.forks_used == 4
    engine.close(lane)
    assert isinstance(await answers.get(), Searched)
    await turns()
    assert (engine.statistics.slots_used, engine.statistics.forks_used) == (0, 0)
    assert engine.open()
    engine.stop()
