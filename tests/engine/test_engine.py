"""The engine over a real graph: same bits in any batch, isolation, no leaks. The reference is tests/reference.py."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine.decoding import Decoding, Sampling
from service.engine.jobs import Job, Lane, OutputKind, OutputSpec
from service.engine.limits import EngineLimits
from service.engine.results import Failed, Fed, Result
from service.errors import EngineError, QueueFullError, RequestCancelledError, TooManySessionsError
from tests.bundles import VOCABULARY_SIZE
from tests.engine.calling import FailingGraph, logits_of, reference_logits, running, taken
from tests.memory import num_alive
from tests.reference import ReferenceSession
from tests.waiting import until

FEEDS = st.lists(st.lists(st.integers(0, VOCABULARY_SIZE - 1), min_size=1, max_size=12), min_size=1, max_size=4)


@given(
    sessions=st.lists(FEEDS, min_size=1, max_size=12),
    limits=st.builds(
        EngineLimits,
        num_slots=st.just(20),
        max_batch_rows=st.sampled_from([1, 3, 256]),
        max_batch_tokens=st.sampled_from([1, 16, 256]),
        max_chunk_tokens=st.sampled_from([1, 4, 32]),
        # all batches on the event loop, all on the thread, or each by its cost
        inline_s=st.sampled_from([10.0, 0.0, 0.00005]),
    ),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_session_gets_the_same_bits_in_any_batch_and_any_chunks(
    tiny_repository: Path, sessions: list[list[list[int]]], limits: EngineLimits
) -> None:
    folder = tiny_repository / "tiny-lm" / "1"

    async def serve() -> list[list[Result]]:
        async with running(folder, limits) as caller:
            futures = []
            lanes = [caller.engine.open() for _ in sessions]
            for lane, feeds in zip(lanes, sessions, strict=True):
                futures.append([caller.feed(lane, tokens) for tokens in feeds])
            return [[await future for future in row] for row in futures]

    for feeds, results in zip(sessions, asyncio.run(serve()), strict=True):
        got = np.concatenate([logits_of(result) for result in results])
        expected = reference_logits(folder, [token for feed in feeds for token in feed])
        assert got.tobytes() == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize("inline_s", [0.0, 10.0])
async def test_a_batch_runs_where_its_cost_puts_it(tiny_repository: Path, inline_s: float) -> None:
    async with running(tiny_repository / "tiny-lm" / "1", EngineLimits(num_slots=9, inline_s=inline_s)) as caller:
        lanes = [caller.engine.open() for _ in range(9)]
        for _ in range(20):
            await asyncio.gather(*(caller.feed(lane, [4, 5]) for lane in lanes))
        statistics = caller.engine.statistics
    assert statistics.num_inline + statistics.num_threaded == len(caller.recorder.batches)
    assert (statistics.num_inline == 0) is (inline_s == 0.0)
    assert (statistics.num_threaded == 0) is (inline_s == 10.0)


async def test_generations_in_a_batch_give_the_same_tokens_as_alone(tiny_repository: Path) -> None:
    folder = tiny_repository / "tiny-bos" / "1"
    decodings = [
        Decoding(max_tokens=15 + seed % 7, sampling=None if seed % 3 == 0 else Sampling(temperature=1.5, seed=seed))
        for seed in range(48)
    ]
    async with running(folder) as caller:
        alone = [await caller.tokens(caller.engine.open(), decoding) for decoding in decodings]
        lanes = [caller.engine.open() for _ in decodings]
        together = await asyncio.gather(*map(caller.tokens, lanes, decodings))
        assert max(report.num_rows for report in caller.recorder.batches) > 1
    assert together == alone
    assert alone[0] == ReferenceSession(folder).generate(decodings[0].max_tokens)
    assert len({tuple(tokens) for tokens in alone}) > 10


async def test_a_session_full_of_nan_changes_no_bit_of_its_neighbours(tiny_repository: Path) -> None:
    folder = tiny_repository / "tiny-lm" / "1"
    tokens = [5, 9, 2, 2, 7]
    async with running(folder) as caller:
        poisoned, healthy = caller.engine.open(), caller.engine.open()
        await caller.feed(poisoned, [1])
        state = await caller.state(poisoned)
        nan = [np.full_like(values, np.nan) for values in state.states]
        caller.engine.write(poisoned, state._replace(states=nan))
        results = [[caller.feed(poisoned, [t]), caller.feed(healthy, [t])] for t in tokens]
        sick, sound = zip(*[[logits_of(await future) for future in pair] for pair in results], strict=True)
        # the next owner of the poisoned slot starts from zeros
        await caller.closed(poisoned)
        heir = caller.engine.open()
        assert heir.slot.row == poisoned.slot.row
        inherited = logits_of(await caller.feed(heir, tokens))
    expected = reference_logits(folder, tokens).astype(np.float32)
    assert np.isnan(np.concatenate(sick)).all()
    assert np.concatenate(sound).tobytes() == expected.tobytes()
    assert inherited.tobytes() == expected.tobytes()


async def test_other_sessions_step_between_the_chunks_of_a_long_feed(tiny_repository: Path) -> None:
    async with running(tiny_repository / "tiny-lm" / "1") as caller:
        nothing = OutputSpec(OutputKind.NONE)
        long = caller.feed(caller.engine.open(), [4] * 20_000, nothing)
        other = caller.engine.open()
        steps = 0
        while not long.done():
            await caller.feed(other, [4], nothing)
            steps += 1
        assert steps > 20


async def test_a_session_continues_exactly_after_a_cancel(
    tiny_repository: Path,
) -> None:
    folder = tiny_repository / "tiny-lm" / "1"
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, VOCABULARY_SIZE, 30_000)]
    async with running(folder) as caller:
        lane = caller.engine.open()
        future = caller.feed(lane, tokens, OutputSpec(OutputKind.NONE))
        behind = caller.feed(lane, [1], OutputSpec(OutputKind.NONE))
        await until(lambda: len(caller.recorder.batches) >= 5)
        cancelled: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        caller.engine.cancel(lane, cancelled.set_result)
        assert await cancelled == 2
        for result in (await future, await behind):
            assert isinstance(result, Failed)
            assert isinstance(result.error, RequestCancelledError)
        position = result.position
        assert 0 < position < len(tokens)
        rest = logits_of(await caller.feed(lane, tokens[position : position + 3]))
    expected = reference_logits(folder, tokens[: position + 3])[-3:]
    assert rest.tobytes() == expected.astype(np.float32).tobytes()


async def test_a_generation_waits_for_its_reader_and_delays_no_other(tiny_repository: Path) -> None:
    async with running(tiny_repository / "tiny-endless" / "1") as caller:
        reader = caller.engine.open()
        job, queue = caller.generate(reader, Decoding(max_tokens=10_000), window=8)
        other = caller.engine.open()
        for _ in range(40):
            await caller.feed(other, [4], OutputSpec(OutputKind.NONE))
        assert job.num_produced == 8
        assert len(await taken(queue, 8)) == 8
        caller.engine.grant(reader, job, 8)
        assert len(await taken(queue, 8)) == 8
        assert job.num_produced == 16


async def test_two_thousand_short_sessions_leave_nothing_behind(tiny_repository: Path) -> None:
    async with running(tiny_repository / "tiny-bos" / "1", EngineLimits(num_slots=64)) as caller:
        num_before = num_alive(Lane, Job)
        for _ in range(2_000 // 50):
            lanes = [caller.engine.open() for _ in range(50)]
            futures = [caller.feed(lane, [4, 5], OutputSpec()) for lane in lanes[:40]]
            for lane in lanes[30:]:  # ten have unfinished feeds, ten were never fed
                caller.engine.close(lane)
            await asyncio.gather(*futures)
            await asyncio.gather(*map(caller.closed, lanes[:30]))
        statistics = caller.engine.statistics
        assert (statistics.slots_used, statistics.num_unanswered) == (0, 0)
        del lanes, lane, futures
        assert num_alive(Lane, Job) <= num_before
        assert {caller.engine.open().slot.row for _ in range(64)} == {*range(1, 65)}


async def test_a_full_arena_and_a_full_queue_are_refused_at_once(tiny_repository: Path) -> None:
    limits = EngineLimits(num_slots=2, max_waiting=3)
    async with running(tiny_repository / "tiny-lm" / "1", limits) as caller:
        lanes = [caller.engine.open(), caller.engine.open()]
        with pytest.raises(
            TooManySessionsError, match=r"all 2 slots of this model are in use, the limit \(max_slots, by"
        ):
            caller.engine.open()
        futures = [caller.feed(lanes[0], [1] * 1000, OutputSpec()) for _ in range(3)]
        with pytest.raises(QueueFullError, match="3 requests already wait") as raised:
            caller.feed(lanes[1], [1], OutputSpec())
        assert raised.value.retry_delay_s
        assert all(isinstance(result, Fed) for result in await asyncio.gather(*futures))
        assert isinstance(await caller.feed(lanes[1], [1], OutputSpec()), Fed)


async def test_a_failed_run_fails_its_requests_and_leaves_every_session_as_it_was(tiny_repository: Path) -> None:
    folder, graph = tiny_repository / "tiny-lm" / "1", FailingGraph()
    async with running(folder, graph=graph) as caller:
        lane = caller.engine.open()
        await caller.feed(lane, [5, 6], OutputSpec())
        graph.num_left = 0
        result = await caller.feed(lane, [7], OutputSpec())
        assert isinstance(result, Failed)
        assert isinstance(result.error, EngineError)
        assert result.position == 2
        assert "no memory" not in result.error.message
        assert [str(error) for error in caller.recorder.failures] == ["no memory"]
        graph.num_left = None
        again = logits_of(await caller.feed(lane, [7]))
    assert again.tobytes() == reference_logits(folder, [5, 6, 7])[-1:].astype(np.float32).tobytes()
