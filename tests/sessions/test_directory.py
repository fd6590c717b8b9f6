"""The directory keeps sessions in order of opening and in order of use, and records which session has which id."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.errors import SessionIdInUseError, StoreUnavailableError, TooManySessionsError
from service.sessions.ages import Ages
from service.sessions.directory import Directory
from service.sessions.lifecycle import State
from service.sessions.session import Session
from tests import domain
from tests.waiting import turns

IDS = st.sampled_from("abcdef")


class StoreMachine(RuleBasedStateMachine):
    """Adds, uses and removes sessions in any order, beside a plain list of them. The clock never goes back."""

    @initialize()
    def begin(self) -> None:
        self.store: Directory = Directory(100, Ages())
        self.kept: list[Session] = []
        self.now_s = 0.0
        self.serial = 0

    @rule(session_id=IDS)
    def add(self, session_id: str) -> None:
        if self._find(session_id) is None:
            self.serial += 1
            session = domain.session(session_id, self.serial, last_used_s=self.now_s)
            self.store.add(session)
            self.kept.append(session)

    @rule(session_id=IDS)
    def touch(self, session_id: str) -> None:
        session = self._find(session_id)
        if session is not None:
            self.store.touch(session, self.now_s)
            assert session.last_used_s == self.now_s

    @rule(session_id=IDS)
    def remove(self, session_id: str) -> None:
        session = self._find(session_id)
        if session is None:
            self.store.remove(domain.session(session_id))
            return
        self.store.remove(session)
        self.kept.remove(session)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(ago_s=st.sampled_from([0.0, 0.5, 1.0, 5.0, 20.0]))
    def unused(self, ago_s: float) -> None:
        """Checks that it returns the sessions last used before the time, the least recently used first."""
        time_s = self.now_s - ago_s
        found = self.store.unused_since(time_s)
        assert {s.serial for s in found} == {s.serial for s in self.kept if s.last_used_s < time_s}
        assert [s.last_used_s for s in found] == sorted(s.last_used_s for s in found)

    @rule(serial=st.integers(0, 12))
    def opened_after(self, serial: int) -> None:
        """Checks that the order is that of opening, whatever was used since."""
        assert self.store.page(serial, 100, "") == [s for s in self.kept if s.serial > serial]

    @invariant()
    def finds_what_it_keeps(self) -> None:
        if hasattr(self, "store"):
            assert len(self.store) == len(self.kept)
            assert all(self.store.get(session_id) is self._find(session_id) for session_id in "abcdef")

    def _find(self, session_id: str) -> Session | None:
        return next((session for session in self.kept if session.id == session_id), None)


StoreMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestDirectory = StoreMachine.TestCase


def test_the_least_recently_used_comes_first_of_those_used_at_different_times() -> None:
    store = Directory(100, Ages())
    sessions = [domain.session(name, serial) for serial, name in enumerate("abc", 1)]
    for session in sessions:
        store.add(session)
    for now_s, session in ((1.0, sessions[1]), (2.0, sessions[0]), (3.0, sessions[2]), (4.0, sessions[1])):
        store.touch(session, now_s)
    assert [session.id for session in store.unused_since(10.0)] == ["a", "c", "b"]
    assert [session.id for session in store.unused_since(4.0)] == ["a", "c"], "used at that very time is not before it"
    assert [session.id for session in store.page(1, 10, "")] == ["b", "c"]


def test_the_sessions_that_are_found_unused_may_be_removed_while_they_are_looked_at() -> None:
    store = Directory(100, Ages())
    for serial, name in enumerate("abc", 1):
        store.add(domain.session(name, serial))
    for session in store.unused_since(1.0):
        store.remove(session)
    assert len(store) == 0


def test_an_id_and_a_place_belong_to_one_session_at_a_time() -> None:
    directory = Directory(2, Ages())
    first = domain.session("p/a", 1)
    directory.add(first)
    with pytest.raises(SessionIdInUseError, match="'a' is in use"):
        directory.add(domain.session("p/a", 2))
    with pytest.raises(TooManySessionsError, match="principal 'p' has 1 sessions open, the limit"):
        directory.add(domain.session("p/b", 3), max_owned=1)
    directory.add(domain.session("q/a", 4), max_owned=1)
    with pytest.raises(TooManySessionsError, match="2 sessions are open, the limit of this server"):
        directory.add(domain.session("c", 5))
    directory.remove(first)
    assert (len(directory), directory.count("p"), directory.count("q")) == (1, 0, 1)
    directory.add(domain.session("p/a", 6))


def test_a_session_without_a_slot_is_in_another_order_of_use() -> None:
    directory = Directory(10, Ages())
    sessions = [domain.session(name, serial) for serial, name in enumerate("abc", 1)]
    for session in sessions:
        directory.add(session)
    directory.move(sessions[0], State.SPILLED)
    assert [session.id for session in directory.live()] == ["b", "c"]
    assert [session.id for session in directory.unused_since(1.0)] == ["b", "c", "a"]
    directory.move(sessions[0], State.RESTORING)
    directory.move(sessions[0], State.IDLE)
    assert [session.id for session in directory.live()] == ["b", "c", "a"]


async def test_an_id_is_being_ended_until_its_last_record_is_stored() -> None:
    directory = Directory(10, Ages())
    end_first, end_second = directory.begin_ending("a"), directory.begin_ending("a")
    assert directory.is_ending("a")
    waiting = asyncio.ensure_future(directory.wait_until_ended("a", 10.0))
    await turns()
    end_first()
    await turns()
    assert not waiting.done()
    assert directory.is_ending("a")
    end_second()
    end_second()
    assert not directory.is_ending("a")
    await waiting


async def test_a_task_that_waits_for_an_id_continues_in_the_turn_in_which_the_id_is_free() -> None:
    """Awaiting a finished future does not yield to the event loop, so a future that stayed in the list would be awaited
    for ever."""
    directory = Directory(10, Ages())
    directory.begin_ending("a")()
    await directory.wait_until_ended("a", 10.0)


async def test_an_id_that_stays_in_use_is_not_waited_for_for_ever() -> None:
    directory = Directory(10, Ages())
    directory.begin_ending("a")
    with pytest.raises(StoreUnavailableError, match="'a' is in use until its last record is stored"):
        await directory.wait_until_ended("a", 0.01)
