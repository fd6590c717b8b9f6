"""Generations that run together in bursts: each has the same result as alone, however it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine.decoding import Decoding, FinishReason, Sampling
from service.engine.jobs import OutputKind, OutputSpec
from service.engine.results import Failed, Generated
from service.errors import EngineError
from tests.bundles import VOCABULARY_SIZE
from tests.domain import ids
from tests.engine.calling import Caller, FailingGraph, logits_of, running
from tests.engine.one_row import choose
from tests.reference import ReferenceSession

Generation = tuple[int, int, int, frozenset[int], int | None, Sampling | None, float, bool]
GENERATIONS = st.lists(
    st.tuples(
        st.integers(0, VOCABULARY_SIZE - 1),  # fed first, so that the sessions differ
        st.integers(1, 60),  # max_tokens
        st.sampled_from([1, 3, 10_000]),  # window
        st.sampled_from([frozenset[int](), frozenset({7}), frozenset({2, 5})]),  # stop tokens
        st.integers(0, 40) | st.none(),  # cancelled after this many tokens
        st.none() | st.builds(Sampling, st.sampled_from([0.7, 1.5]), st.none() | st.just(5), seed=st.integers(0, 9)),
        st.sampled_from([1.0, 3.0]),  # repetition penalty
        st.booleans(),  # log-probabilities
    ),
    min_size=1,
    max_size=9,
)


@given(generations=GENERATIONS, model=st.sampled_from(["tiny-endless", "tiny-bos", "tiny-heads"]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_generations_in_bursts_give_what_each_gives_alone_and_leave_its_state(
    tiny_repository: Path,
    generations: list[Generation],
    model: str,
) -> None:
    folder = tiny_repository / model / "1"

    async def one(caller: Caller, generation: Generation) -> None:
        first, max_tokens, window, stops, cut, sampling, penalty, scored = generation
        decoding = Decoding(max_tokens, sampling, scored, repetition_penalty=penalty, stop_ids=stops)
        lane = caller.engine.open()
        await caller.feed(lane, [first], OutputSpec(OutputKind.NONE))
        job, queue = caller.generate(lane, decoding, window)
        tokens: list[int] = []
        scores: list[float] = []
        reason = None
        while reason is None:
            result = await queue.get()
            if isinstance(result, Failed):
                break
            assert isinstance(result, Generated)
            tokens += ids(result.token_ids)
            scores += result.log_probabilities or []
            reason = result.finish_reason
            assert job.num_produced - job.num_granted <= window
            caller.engine.grant(lane, job, len(result.token_ids))
            if cut is not None and len(tokens) >= cut:
                caller.engine.cancel(lane, lambda count: None)
        last = logits_of(await caller.feed(lane, [1]))
        session = ReferenceSession(folder)
        session.step(first)
        expected, expected_scores, why = alone(session, decoding)
        assert tokens == expected[: len(tokens)]
        assert scores == (expected_scores[: len(tokens)] if scored else [])
        if reason is not None:
            assert (tokens, reason) == (expected, why)
        else:
            assert cut is not None
        assert last.tobytes() == after(folder, [first, *tokens]).tobytes()
        await caller.closed(lane)

    async with running(folder) as caller:
        await asyncio.gather(*(one(caller, generation) for generation in generations))
        assert caller.engine.statistics.slots_used == 0


def alone(session: ReferenceSession, decoding: Decoding) -> tuple[list[int], list[float], FinishReason]:
    """Returns the tokens of a generation, their log-probabilities if requested, and its finish reason."""
    tokens: list[int] = []
    scores: list[float] = []
    eos_id = session.manifest.special_tokens.eos_id
    while True:
        assert session.logits is not None
        seen = np.array(tokens, np.int64)
        position = 1 + len(tokens)
        token, score = choose(session.logits, decoding, position, num_produced=len(tokens), seen=seen, eos_id=eos_id)
        reason = decoding.finish_reason(token, len(tokens) + 1, eos_id)
        if reason in {FinishReason.EOS, FinishReason.STOP}:
            return tokens, scores, reason
        tokens.append(token)
        scores += [] if score is None else [score]
        if reason is not None:
            return tokens, scores, reason
        session.step(token)


def after(folder: Path, tokens: list[int]) -> np.ndarray:
    """Returns the model's logits after some tokens and a last token of 1."""
    session = ReferenceSession(folder)
    for token in tokens:
        session.step(token)
    return np.array(session.step(1), np.float32)


async def test_a_run_that_fails_in_a_burst_keeps_the_tokens_before_it(tiny_repository: Path) -> None:
    folder = tiny_repository / "tiny-heads" / "1"
    graph = FailingGraph()
    async with running(folder, graph=graph) as caller:
        graph.num_left = 29
        lane = caller.engine.open()
        _, queue = caller.generate(lane, Decoding(60, stop_ids=frozenset()))
        tokens: list[int] = []
        while isinstance(result := await queue.get(), Generated) and result.finish_reason is None:
            tokens += ids(result.token_ids)
        assert isinstance(result, Failed)
        assert isinstance(result.error, EngineError)
        assert result.position == len(tokens) == 29
        graph.num_left = None
        last = logits_of(await caller.feed(lane, [1]))
    assert tokens == ReferenceSession(folder).generate(29)
    assert last.tobytes() == after(folder, tokens).tobytes()
