"""Results that could not be stored are kept in a limited amount of memory."""

from __future__ import annotations

import gc

from service.sessions.persistence import AnswersByKey, UnstoredAnswer
from service.sessions.unstored import UnstoredAnswers


def answers(*sessions: AnswersByKey) -> list[object]:
    """Returns the kept results of sessions."""
    return [kept.answered for one in sessions for some in one.values() for kept in some]


def test_the_oldest_of_all_are_dropped_when_they_take_too_much() -> None:
    keeper, first, second = UnstoredAnswers(100), AnswersByKey(), AnswersByKey()
    keeper.keep(UnstoredAnswer(first, 0, "a"), 40)
    keeper.keep(UnstoredAnswer(first, 0, "b"), 40)
    keeper.keep(UnstoredAnswer(second, 0, "c"), 60)
    assert answers(first, second) == ["b", "c"]
    keeper.keep(UnstoredAnswer(second, 7, "d"), 40)
    assert (first, answers(second)) == ({}, ["c", "d"])
    assert keeper.num_bytes == 100


def test_one_is_kept_once() -> None:
    keeper, among = UnstoredAnswers(100), AnswersByKey()
    keeper.keep(UnstoredAnswer(among, 0, "a"), 60)
    keeper.keep(UnstoredAnswer(among, 0, "a"), 60)
    assert (answers(among), keeper.num_bytes) == (["a"], 60)


def test_a_result_that_is_too_large_is_not_kept() -> None:
    keeper, among = UnstoredAnswers(100), AnswersByKey()
    keeper.keep(UnstoredAnswer(among, 0, "a"), 101)
    assert (among, keeper.num_bytes) == ({}, 0)


def test_released_results_are_not_counted() -> None:
    keeper, among = UnstoredAnswers(100), AnswersByKey()
    keeper.keep(UnstoredAnswer(among, 0, "a"), 60)
    late = UnstoredAnswer(among, 1, "b")
    del among
    gc.collect()
    assert keeper.num_bytes == 0
    keeper.keep(late, 60)
    assert keeper.num_bytes == 0
