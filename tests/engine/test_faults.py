"""An exception affects only its own callback, command or row of a batch. All waiting jobs get a result."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.engine.decoding import Decoding, Sampling
from service.engine.generations import ActiveGeneration
from service.engine.jobs import FeedJob, GenerateJob, Job, OutputKind, OutputSpec, ScoreJob, StepBatchJob
from service.engine.limits import EngineLimits
from service.engine.results import Failed, Fed, Generated, LaneState, Result, Scored, Stepped
from service.errors import EngineError, RequestCancelledError, SessionMovedError, ShuttingDownError
from tests.domain import ids
from tests.engine.calling import Caller, logits_of, reference_logits, running
from tests.waiting import turns

NOTHING = OutputSpec(OutputKind.NONE)
OUTSIDE = 10_000
"""A token outside every vocabulary of these models."""


@contextmanager
def reported() -> Iterator[list[Any]]:
    """Yields the exceptions that the event loop's exception handler receives."""
    loop = asyncio.get_running_loop()
    errors: list[Any] = []
    loop.set_exception_handler(lambda loop, context: errors.append(context["exception"]))
    try:
        yield errors
    finally:
        loop.set_exception_handler(None)


def raising(*arguments: Any) -> None:
    raise RuntimeError("a bug of the caller's")


@pytest.mark.parametrize("inline_s", [0.0, 10.0])
async def test_a_callback_that_raises_affects_no_other_callback(tiny_repository: Path, inline_s: float) -> None:
    limits = EngineLimits(num_slots=8, inline_s=inline_s)
    async with running(tiny_repository / "tiny-lm" / "1", limits) as caller:
        with reported() as errors:
            lane, other, third = (caller.engine.open() for _ in range(3))
            caller.engine.submit(lane, FeedJob(reply=raising, start=None, tokens=[1], outputs=NOTHING))
            futures = [caller.feed(other, [1])]
            caller.engine.cancel(lane, raising)
            caller.engine.read([lane], raising)
            caller.engine.close(third, raising)
            futures.append(caller.feed(other, [2]))
            results = await asyncio.gather(*futures)
            assert all(isinstance(result, Fed) for result in results)
            assert isinstance(await caller.feed(lane, [2]), Fed)
            await turns()
            assert [str(error) for error in errors] == ["a bug of the caller's"] * 4
        assert caller.engine.statistics.num_unanswered == 0
        assert caller.engine.statistics.slots_used == 2


@pytest.mark.parametrize("model", ["tiny-lm", "tiny-heads"])
@pytest.mark.parametrize("inline_s", [0.0, 10.0])
async def test_a_choice_that_raises_fails_its_row_alone(tiny_repository: Path, model: str, inline_s: float) -> None:
    """Happens when a generation resumes on a version with a smaller vocabulary. Tests batches and bursts."""
    folder = tiny_repository / model / "1"
    penalised = Decoding(20, repetition_penalty=2.0, min_tokens=20)
    sampled = Decoding(20, Sampling(temperature=1.5, seed=3), min_tokens=20)
    async with running(folder, EngineLimits(num_slots=16, inline_s=inline_s)) as caller:
        alone = caller.engine.open()
        await caller.feed(alone, [5], NOTHING)
        expected = await caller.tokens(alone, sampled)
        lanes = [caller.engine.open() for _ in range(4)]
        await asyncio.gather(*(caller.feed(lane, [5], NOTHING) for lane in lanes))
        queue: asyncio.Queue[Result] = asyncio.Queue()
        bad = GenerateJob(
            reply=lambda job, result: queue.put_nowait(result),
            start=None,
            decoding=penalised,
            window=100,
            seen=np.array([OUTSIDE]),
        )
        others = [asyncio.ensure_future(caller.tokens(lane, sampled)) for lane in lanes[1:]]
        caller.engine.submit(lanes[0], bad)
        result = await queue.get()
        assert isinstance(result, Failed)
        assert isinstance(result.error, EngineError)
        assert result.position == 1
        assert await asyncio.gather(*others) == [expected] * 3
        assert [type(error) for error in caller.recorder.failures] == [IndexError]
        assert logits_of(await caller.feed(lanes[0], [6])).tobytes() == after(folder, [5, 6]), "it is where it was"


async def test_a_choice_that_raises_keeps_the_earlier_tokens(tiny_repository: Path) -> None:
    folder = tiny_repository / "tiny-endless" / "1"
    async with running(folder) as caller:
        good, bad = caller.engine.open(), caller.engine.open()
        decoding = Decoding(300, repetition_penalty=2.0)
        job, queue = caller.generate(bad, decoding)
        reader = asyncio.ensure_future(caller.tokens(good, Decoding(300)))
        tokens: list[int] = []
        is_spoilt = False
        while isinstance(result := await queue.get(), Generated) and result.finish_reason is None:
            tokens += ids(result.token_ids)
            generation = bad.active if isinstance(bad.active, ActiveGeneration) else None
            if not is_spoilt and generation is not None and generation.choice is not None:
                # a stop token outside the vocabulary, which may not be chosen before `min_tokens`
                generation.choice.decoding = Decoding(300, min_tokens=300, stop_ids=frozenset({OUTSIDE}))
                is_spoilt = True
        assert isinstance(result, Failed)
        assert isinstance(result.error, EngineError)
        assert result.position == len(tokens)
        assert job.num_produced == len(tokens)
        assert len(await reader) == 300
        assert logits_of(await caller.feed(bad, [1])).tobytes() == after(folder, [*tokens, 1])


async def test_a_score_outside_the_vocabulary_fails_alone_and_frees_its_forks(tiny_repository: Path) -> None:
    folder = tiny_repository / "tiny-heads" / "1"
    async with running(folder) as caller:
        lane, other = caller.engine.open(), caller.engine.open()
        await asyncio.gather(caller.feed(lane, [5], NOTHING), caller.feed(other, [5], NOTHING))
        wrong = [score(caller, lane, targets) for targets in ([[1, 2], [3, 4, OUTSIDE]], [[OUTSIDE]])]
        right = score(caller, other, [[1, 2], [3, 4, 5]])
        for result in await asyncio.gather(*wrong):
            assert isinstance(result, Failed)
            assert isinstance(result.error, EngineError)
            assert result.position == 1
        assert isinstance(await right, Scored)
        statistics = caller.engine.statistics
        assert (statistics.forks_used, statistics.num_unanswered) == (0, 0)
        assert logits_of(await caller.feed(lane, [6])).tobytes() == after(folder, [5, 6])


@pytest.mark.parametrize("bad", [[0], [3], [1, 4], [0, 1, 2, 3, 4]])
async def test_a_row_that_cannot_be_run_fails_alone(tiny_repository: Path, bad: list[int]) -> None:
    """The batch has feeds of different lengths, with a step batch and a generation beside them."""
    folder = tiny_repository / "tiny-lm" / "1"
    async with running(folder, EngineLimits(num_slots=16, inline_s=10.0)) as caller:
        lanes = [caller.engine.open() for _ in range(5)]
        stepped = [caller.engine.open() for _ in range(4)]
        generating = caller.engine.open()
        await asyncio.gather(*(caller.feed(lane, [5], NOTHING) for lane in [*lanes, *stepped, generating]))
        tokens = [[place + 1] * (1 + place % 2) for place in range(5)]
        wrong = [[*line, OUTSIDE] if place in bad else line for place, line in enumerate(tokens)]
        futures = [caller.feed(lane, line) for lane, line in zip(lanes, wrong, strict=True)]
        batch = step_batch(caller, stepped, [1, OUTSIDE, OUTSIDE, 4])
        going = asyncio.ensure_future(caller.tokens(generating, Decoding(5, min_tokens=5)))
        for place, result in enumerate(await asyncio.gather(*futures)):
            if place in bad:
                assert isinstance(result, Failed)
                assert (type(result.error), result.position) == (EngineError, 1)
            else:
                assert logits_of(result)[-1:].tobytes() == after(folder, [5, *tokens[place]])
        answer = await batch
        assert [place for place, _ in answer.errors] == [1, 2]
        assert {type(error) for _, error in answer.errors} == {EngineError}
        assert list(answer.positions) == [2, 1, 1, 2]
        alone = caller.engine.open()
        await caller.feed(alone, [5], NOTHING)
        assert await going == await caller.tokens(alone, Decoding(5, min_tokens=5))
        assert len(caller.recorder.failures) == len(bad) + 2
        for lane, line in [(lanes[place], [5] if place in bad else [5, *tokens[place]]) for place in range(5)]:
            assert logits_of(await caller.feed(lane, [6]))[-1:].tobytes() == after(folder, [*line, 6])
        for lane, line in zip(stepped, [[5, 1], [5], [5], [5, 4]], strict=True):
            assert logits_of(await caller.feed(lane, [6]))[-1:].tobytes() == after(folder, [*line, 6])
        assert caller.engine.statistics.num_unanswered == 0


def step_batch(caller: Caller, lanes: list[Any], tokens: list[int]) -> asyncio.Future[Stepped]:
    future: asyncio.Future[Stepped] = asyncio.get_running_loop().create_future()
    job = StepBatchJob(
        reply=lambda job, result: future.set_result(result),
        lanes=lanes,
        starts=None,
        tokens=tokens,
        counts=None,
        outputs=OutputSpec(),
    )
    caller.engine.submit_step_batch(job)
    return future


async def test_a_command_that_raises_is_reported_and_answered(tiny_repository: Path) -> None:
    async with running(tiny_repository / "tiny-lm" / "1") as caller:
        with reported() as errors:
            lane, other = caller.engine.open(), caller.engine.open()
            await caller.feed(lane, [1], NOTHING)
            states: list[LaneState | None] = []
            caller.engine.read([lane], states.extend)
            await caller.feed(lane, [2], NOTHING)
            (state,) = states
            assert state is not None
            wrong = state._replace(states=[array[..., :1] for array in state.states])
            caller.engine.write(other, wrong)
            result = await caller.feed(other, [1])
            assert isinstance(result, Failed)
            assert isinstance(result.error, EngineError)
            await turns()
            assert [type(error) for error in errors] == [ValueError]
            future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
            caller.engine.submit(lane, Unknown(reply=lambda job, result: future.set_result(result)))
            result = await future
            assert isinstance(result, Failed)
            assert isinstance(result.error, EngineError)
            assert isinstance(await caller.feed(lane, [3]), Fed)


class Unknown(Job):
    """A kind of job that the engine does not know."""


async def test_a_step_batch_that_cannot_be_taken_in_is_answered(tiny_repository: Path) -> None:
    async with running(tiny_repository / "tiny-lm" / "1") as caller:
        with reported() as errors:
            lanes = [caller.engine.open() for _ in range(3)]
            future = step_batch(caller, lanes, [1])  # too few tokens
            stepped = await future
            assert [place for place, _ in stepped.errors] == [0, 1, 2]
            assert all(isinstance(error, EngineError) for _, error in stepped.errors)
            assert not errors
        assert len(caller.recorder.failures) == 1
        assert caller.engine.statistics.num_unanswered == 0
        assert isinstance(await caller.feed(lanes[0], [1]), Fed)


async def test_commands_of_a_callback_run_after_the_results_in_delivery(tiny_repository: Path) -> None:
    """This holds also for a lone lane, which runs at once: the callback of a read runs before later results."""
    async with running(tiny_repository / "tiny-lm" / "1", EngineLimits(num_slots=8, inline_s=10.0)) as caller:
        lane = caller.engine.open()
        for _ in range(20):
            caller.engine.run_inline_if_lone(lane)
        order: list[str] = []
        is_over = asyncio.Event()

        def again(job: Job, result: Result) -> None:
            order.append("first")
            caller.engine.submit(lane, FeedJob(reply=second, start=None, tokens=[2], outputs=NOTHING))
            caller.engine.run_inline_if_lone(lane)

        def second(job: Job, result: Result) -> None:
            order.append("second")
            is_over.set()

        caller.engine.submit(lane, FeedJob(reply=again, start=None, tokens=[1], outputs=NOTHING))
        caller.engine.cancel(lane, lambda count: order.append("cancelled"))
        caller.engine.read([lane], lambda states: order.append("read"))
        assert isinstance(await caller.feed(lane, [3]), Fed)
        await is_over.wait()
    assert order == ["first", "cancelled", "read", "second"]


async def test_waiting_and_later_jobs_fail_when_the_engine_stops(tiny_repository: Path) -> None:
    async with running(tiny_repository / "tiny-endless" / "1") as caller:
        parked, fed = caller.engine.open(), caller.engine.open()
        _, tokens = caller.generate(parked, Decoding(1000), window=4)
        behind = caller.feed(parked, [1])
        await tokens.get()
        long = caller.feed(fed, [1] * 200_000, NOTHING)
        _, endless = caller.generate(caller.engine.open(), Decoding(10_000_000), window=100_000_000)
        await endless.get()
        await asyncio.to_thread(caller.engine.stop)
        late = caller.feed(fed, [1])
        opened = caller.feed(caller.engine.open(), [1])
        for future in (behind, long, late, opened):
            assert is_shut_down(await asyncio.wait_for(future, 5))
        for queue in (tokens, endless):
            while not isinstance(result := await asyncio.wait_for(queue.get(), 5), Failed):
                pass
            assert is_shut_down(result)
        assert caller.engine.statistics.num_unanswered == 0


async def test_jobs_of_a_closed_lane_are_answered_with_the_error_that_closed_it(tiny_repository: Path) -> None:
    async with running(tiny_repository / "tiny-endless" / "1") as caller:
        for given, expected in ((SessionMovedError("moved"), SessionMovedError), (None, RequestCancelledError)):
            lane = caller.engine.open()
            first, second = caller.feed(lane, [1]), caller.feed(lane, [2])
            caller.engine.close(lane, error=given)
            late = caller.feed(lane, [3])
            for result in await asyncio.gather(first, second, late):
                assert isinstance(result, Failed)
                assert type(result.error) is expected


def is_shut_down(result: Result) -> bool:
    return isinstance(result, Failed) and isinstance(result.error, ShuttingDownError)


def after(folder: Path, tokens: list[int]) -> bytes:
    """Returns the logits after some tokens."""
    return reference_logits(folder, tokens)[-1:].astype(np.float32).tobytes()


def score(caller: Caller, lane: Any, targets: list[list[int]]) -> asyncio.Future[Result]:
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    slots = caller.engine.acquire_forks(len(targets))
    job = ScoreJob(reply=lambda job, result: future.set_result(result), start=None, targets=targets, slots=slots)
    caller.engine.submit(lane, job)
    return future
