"""Answers kept for retries take a bounded part of the memory."""

from __future__ import annotations

import gc

import numpy as np

from service.engine.jobs import OutputSpec
from service.engine.results import Fed, StepOutput
from service.sessions.replays import Replays, size_of
from service.sessions.session import LastFeed


def answered(num_floats: int) -> LastFeed:
    feed = LastFeed(None, 0, [1], OutputSpec())
    feed.result = Fed(1, [StepOutput(1, [], None, np.zeros(num_floats, np.float32))])
    return feed


def size(feed: LastFeed) -> int:
    assert isinstance(feed.result, Fed)
    return size_of(feed.result.outputs)


def keep(replays: Replays, feed: LastFeed) -> None:
    replays.keep(feed, size(feed))


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


def test_an_answer_that_nothing_keeps_any_more_is_not_counted() -> None:
    replays = Replays(10**9)
    feed = answered(10_000)
    keep(replays, feed)
    assert replays.num_bytes > 40_000
    del feed
    gc.collect()
    assert replays.num_bytes == 0
