"""Answers that the store did not take are kept in a bounded part of the memory."""

from __future__ import annotations

import gc

from service.sessions.persistence import Kept
from service.sessions.unstored import Unstored


def test_the_latest_of_a_session_are_kept() -> None:
    unstored, among = Unstored(2, 1000), list[Kept]()
    for number in range(4):
        unstored.keep(among, Kept(f"answer {number}"), 10)
    assert [one.answered for one in among] == ["answer 2", "answer 3"]
    assert unstored.num_bytes == 20


def test_the_oldest_of_all_are_dropped_when_they_take_too_much() -> None:
    unstored, first, second = Unstored(9, 100), list[Kept](), list[Kept]()
    unstored.keep(first, Kept("a"), 60)
    unstored.keep(second, Kept("b"), 60)
    assert [one.answered for one in (*first, *second)] == [None, "b"]
    assert unstored.num_bytes == 60


def test_one_is_kept_once() -> None:
    unstored, among = Unstored(9, 100), list[Kept]()
    unstored.keep(among, Kept("a"), 60)
    unstored.keep(among, Kept("a"), 60)
    assert (len(among), unstored.num_bytes) == (1, 60)


def test_what_nothing_keeps_any_more_is_not_counted() -> None:
    unstored, among = Unstored(9, 100), list[Kept]()
    unstored.keep(among, Kept("a"), 60)
    among.clear()
    gc.collect()
    assert unstored.num_bytes == 0
