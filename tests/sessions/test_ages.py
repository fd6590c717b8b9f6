"""Finds sessions that are too old, the oldest first, on any server; ended sessions take no memory."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import SnapshotExpiredError
from service.sessions.ages import Ages
from service.sessions.lifecycle import State
from service.sessions.persistence import Persistence, SessionPolicy
from service.sessions.session import Session
from tests import domain
from tests.memory import num_alive

NOW_S = 1_700_000_000.0


def session(serial: int, opened_at: float) -> Session:
    """Returns a session that was opened on another server."""
    one = domain.session(f"s{serial}", serial)
    one.persistence = Persistence(SessionPolicy(), opened_at=opened_at)
    return one


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=30), st.integers(0, 25))
def test_those_that_are_too_old_are_found_once_the_oldest_first(opened: list[tuple[int, bool]], now_s: int) -> None:
    ages = Ages(5.0, wall_clock=lambda: NOW_S + now_s)
    sessions = [session(serial, NOW_S + opened_s) for serial, (opened_s, _) in enumerate(opened)]
    for one, (_, has_ended) in zip(sessions, opened, strict=True):
        ages.add(one)
        if has_ended:
            one.state = State.ENDED
            ages.remove()
    expected = [one for one in sessions if not one.is_over and one.opened_at + 5.0 <= NOW_S + now_s]
    assert ages.overdue() == sorted(expected, key=lambda one: one.opened_at)
    assert ages.overdue() == []


def test_sessions_that_have_ended_do_not_stay_in_memory() -> None:
    now_s, few, num_before = NOW_S, [], num_alive(Session)
    ages = Ages(1e6, wall_clock=lambda: now_s)
    for serial in range(8_000):
        one = session(serial, NOW_S)
        ages.add(one)
        if serial % 4_000:
            one.state = State.ENDED
            ages.remove()
        else:
            few.append(one)
    assert num_alive(Session) - num_before < 3_000
    now_s += 1e6
    assert ages.overdue() == few


def test_the_remaining_age_is_given_in_both_clocks() -> None:
    ages = Ages(60.0, clock=lambda: 7.0, wall_clock=lambda: NOW_S)
    assert (ages.left_s(NOW_S - 50.0), ages.gone_by_s(NOW_S - 50.0)) == (15.0, 22.0)  # with the grace period
    assert (ages.left_s(NOW_S - 500.0), ages.gone_by_s(NOW_S - 500.0)) == (0.0, 7.0)
    assert not ages.is_over(NOW_S - 59.9)
    assert ages.is_over(NOW_S - 60.0)


def test_without_a_limit_nothing_is_too_old_or_kept() -> None:
    ages, num_before = Ages(wall_clock=lambda: NOW_S), num_alive(Session)
    ages.add(session(1, 0.0))
    assert num_alive(Session) == num_before
    assert ages.overdue() == []
    assert not ages.is_over(0.0)
    assert ages.left_s(0.0) == ages.gone_by_s(0.0) == math.inf
    ages.check_snapshot(0.0)


def test_a_snapshot_that_is_too_old_is_refused_with_its_time_and_the_limit() -> None:
    ages = Ages(60.0, wall_clock=lambda: NOW_S)
    ages.check_snapshot(NOW_S - 59.0)
    with pytest.raises(SnapshotExpiredError) as raised:
        ages.check_snapshot(NOW_S - 61.0)
    assert raised.value.field == "snapshot"
    assert "opened at 2023-11-14T22:12:19+00:00, and sessions of this server may exist for 60 s (max_age_s)" in str(
        raised.value
    )
