"""Unwritten responses, and results kept for retries, use a limited amount of memory."""

from __future__ import annotations

import asyncio
import gc

import numpy as np
import pytest

from service.engine.beam import Hypothesis
from service.engine.decoding import Beam, Decoding, FinishReason
from service.engine.jobs import Item, OutputSpec, size_of
from service.engine.last_tokens import LastTokens
from service.engine.results import Fed, Generated, Searched, StepOutput
from service.errors import QueueFullError
from service.repository.steps import HISTORY
from service.sessions.answer_memory import SMALL_ANSWER, AnswerBudget, Replays, StreamBudget, outputs_bytes
from service.sessions.generation import Generation, LastFeed
from service.sessions.request import Request
from tests.waiting import turns

MIB = 1024 * 1024


def request(budget: StreamBudget | None) -> Request:
    return Request(None, 1, lambda request, result: None, 0.0, budget)


def test_answers_of_all_streams_share_one_bound() -> None:
    budget = AnswerBudget(10 * MIB)
    one, other = StreamBudget(budget), StreamBudget(budget)
    one.reserve(6 * MIB)
    with pytest.raises(QueueFullError) as refusal:
        other.reserve(5 * MIB)
    assert refusal.value.facts["max_unwritten_bytes"] == 10 * MIB
    assert (other.num_bytes, budget.num_bytes) == (0, 6 * MIB)
    one.release(2 * MIB)
    other.reserve(5 * MIB)
    assert budget.num_bytes == 9 * MIB


def test_a_single_answer_may_be_over_the_bound() -> None:
    budget = AnswerBudget(MIB)
    stream = StreamBudget(budget)
    stream.reserve(3 * MIB)
    with pytest.raises(QueueFullError):
        stream.reserve(1)


async def test_a_stream_is_full_until_its_answers_are_written() -> None:
    stream = StreamBudget(AnswerBudget(1000 * MIB))
    stream.reserve(31 * MIB)
    assert not stream.is_full
    stream.reserve(4 * MIB)
    assert stream.is_full
    waiting = asyncio.create_task(stream.room())
    stream.release(MIB)
    await turns()
    assert not waiting.done()
    stream.release(4 * MIB)
    await asyncio.wait_for(waiting, 5)


def test_a_stream_that_is_over_counts_nothing_more() -> None:
    budget = AnswerBudget(10 * MIB)
    stream, other = StreamBudget(budget), StreamBudget(budget)
    stream.reserve(6 * MIB)
    other.reserve(MIB)
    stream.close()
    stream.close()
    assert budget.num_bytes == MIB
    stream.release(6 * MIB)
    stream.reserve(MIB)
    assert (stream.num_bytes, budget.num_bytes) == (0, MIB)


def test_a_request_gives_back_what_it_has_taken_once() -> None:
    budget = AnswerBudget(MIB)
    one = request(StreamBudget(budget))
    one.reserve(SMALL_ANSWER)
    assert budget.num_bytes == 0
    one.reserve(SMALL_ANSWER + 1)
    one.reserve(10_000)
    assert budget.num_bytes == SMALL_ANSWER + 10_001
    one.release()
    one.release()
    assert budget.num_bytes == 0


def test_a_request_of_a_unary_call_takes_nothing() -> None:
    one = request(None)
    one.reserve(MIB)
    one.release()
    assert one.answer_bytes == 0


def answered(num_floats: int) -> LastFeed:
    feed = LastFeed(None, 0, [1], OutputSpec())
    feed.result = Fed(1, [StepOutput(1, [], None, np.zeros(num_floats, np.float32))])
    return feed


def size(feed: LastFeed) -> int:
    assert isinstance(feed.result, Fed)
    return outputs_bytes(feed.result.outputs)


def keep(replays: Replays, feed: LastFeed) -> None:
    replays.keep(feed, size(feed) + size_of(feed.tokens))


def test_the_oldest_large_answers_are_dropped_and_their_positions_are_kept() -> None:
    replays = Replays(100_000)
    feeds = [answered(10_000) for _ in range(4)]
    for feed in feeds:
        keep(replays, feed)
    assert [feed.is_dropped for feed in feeds] == [True, True, False, False]
    assert replays.num_bytes <= 100_000
    assert feeds[0].result == Fed(1, [])
    assert size(feeds[3]) > 40_000


def test_small_answers_are_not_counted() -> None:
    replays = Replays(1)
    feed = answered(10)
    keep(replays, feed)
    assert (replays.num_bytes, feed.is_dropped) == (0, False)


def test_an_answer_that_is_kept_twice_is_counted_once() -> None:
    replays, feed = Replays(10**9), answered(10_000)
    keep(replays, feed)
    once = replays.num_bytes
    keep(replays, feed)
    assert replays.num_bytes == once


def test_an_answer_that_nothing_keeps_any_more_is_not_counted() -> None:
    replays = Replays(10**9)
    feed = answered(10_000)
    keep(replays, feed)
    assert replays.num_bytes > 40_000
    del feed
    gc.collect()
    assert replays.num_bytes == 0


@pytest.mark.parametrize("tokens", [[7] * 10_000, [b"1234"] * 10_000])
def test_the_tokens_of_a_long_feed_are_counted_and_its_retry_is_known_without_them(tokens: list[Item]) -> None:
    feed = LastFeed(None, 0, list(tokens), OutputSpec())
    feed.result = answer = Fed(10_000, [StepOutput(10_000, [5])])
    keep(Replays(1), feed)
    assert (feed.is_dropped, len(feed.tokens)) == (False, 0)
    assert feed.result is answer
    assert feed.is_repeated_by(0, tokens, OutputSpec(), has_mark=False)
    assert not feed.is_repeated_by(0, [*tokens[1:], tokens[0] * 2], OutputSpec(), has_mark=False)
    assert not feed.is_repeated_by(0, tokens[1:], OutputSpec(), has_mark=False)


def test_of_a_search_that_is_not_kept_the_position_is() -> None:
    search = Generation(0, Decoding(1000, beam=Beam(8, 0.0, 8)), None)
    best = Hypothesis([1] * 1000, None, 0.0, 0.0, [0.0] * 1000, FinishReason.MAX_TOKENS)
    search.tokens, search.found = [*best.tokens], Searched(1000, [best] * 8)
    Replays(1).keep(search, 100_000)
    assert (search.is_ended, search.position, len(search.tokens)) == (True, 1000, 0)
    assert search.found is None


def test_a_generation_knows_what_was_before_each_of_its_tokens() -> None:
    """This holds also if the generation has dropped its first tokens."""
    generation = Generation(None, Decoding(1000), None)
    generation.add(Generated(5, [14, 15], None, None, LastTokens(3, [11, 12, 13])), 2)
    for position in range(6, 30):
        generation.add(Generated(position, [10 + position], None, None), 2)
    for position in range(3 + generation.num_dropped, 30):
        found = generation.after(position)
        assert found.before == LastTokens(position, list(range(11, 11 + position)))
        assert found.token_ids == list(range(11 + position, 40))


def test_before_is_as_long_as_a_history() -> None:
    many = list(range(HISTORY))
    assert LastTokens(HISTORY, many).after([1, 2]) == LastTokens(HISTORY + 2, [*many[2:], 1, 2])
