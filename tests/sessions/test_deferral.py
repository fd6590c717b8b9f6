"""Deferred requests run in order and once, or are refused, whatever happens to their sessions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.errors import CarouselError, QueueFullError, RequestCancelledError
from service.sessions.deferral import Deferral, Deferred, Failures
from service.sessions.lifecycle import State
from service.sessions.persistence import PLAIN, Persistence
from service.sessions.session import Session
from tests import domain

NAMES = "abc"
ERROR = RequestCancelledError("it is over")


class DeferralMachine(RuleBasedStateMachine):
    """Sessions lose their slots, get them again and end, while requests arrive for one or several of them.

    sent: by session, the requests in the order of arrival.
    done: by session, the requests in the order in which they ran.
    """

    @initialize()
    def begin(self) -> None:
        self.deferral = Deferral(max_requests=1000, max_bytes=10**9)
        self.sessions = {name: domain.session(name, serial) for serial, name in enumerate(NAMES, 1)}
        self.sent: dict[str, list[int]] = {name: [] for name in NAMES}
        self.done: dict[str, list[int]] = {name: [] for name in NAMES}
        self.fate: dict[int, str] = {}
        self.last = 0

    @rule(names=st.sets(st.sampled_from(NAMES), min_size=1))
    def ask(self, names: set[str]) -> None:
        self.last += 1
        number, asked = self.last, sorted(names)
        for name in asked:
            self.sent[name].append(number)

        def run(failures: Failures) -> None:
            assert number not in self.fate
            self.fate[number] = "run"
            for name in asked:
                if self.sessions[name] not in failures:
                    assert self.sessions[name].is_live
                    self.done[name].append(number)

        def refuse(error: CarouselError) -> None:
            assert number not in self.fate
            self.fate[number] = "refused"

        sessions = [self.sessions[name] for name in asked]
        if all(session.deferred is None for session in sessions):
            run({})
        else:
            self.deferral.defer(Deferred(sessions, run, refuse, num_bytes=number))

    def named(self, state: State) -> list[str]:
        return [name for name, session in self.sessions.items() if session.state is state]

    @rule(name=st.sampled_from(NAMES))
    def spill(self, name: str) -> None:
        """As in the server: a session with deferred requests keeps its slot."""
        session = self.sessions[name]
        if session.state is State.IDLE and session.deferred is None:
            session.state = State.SPILLED
            self.deferral.suspend(session)

    @precondition(lambda self: self.named(State.SPILLED))
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        session = self.sessions[data.draw(st.sampled_from(self.named(State.SPILLED)))]
        session.state = State.IDLE
        self.deferral.run(session)

    @precondition(lambda self: self.named(State.SPILLED))
    @rule(data=st.data())
    def cannot_be_restored(self, data: st.DataObject) -> None:
        session = self.sessions[data.draw(st.sampled_from(self.named(State.SPILLED)))]
        self.deferral.refuse(session, ERROR)
        assert session.deferred is not None, "it still has no slot"

    @rule(name=st.sampled_from(NAMES))
    def cancel(self, name: str) -> None:
        self.deferral.refuse(self.sessions[name], ERROR)

    @invariant()
    def order_is_kept(self) -> None:
        if hasattr(self, "sessions"):
            for name in NAMES:
                assert self.done[name] == sorted(set(self.done[name]))

    @invariant()
    def what_can_run_has_run(self) -> None:
        if hasattr(self, "sessions"):
            waiting = [number for number in range(1, self.last + 1) if number not in self.fate]
            assert self.deferral.num_bytes == sum(waiting)
            if all(session.is_live for session in self.sessions.values()):
                assert waiting == []
                assert all(session.deferred is None for session in self.sessions.values())


DeferralMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestDeferral = DeferralMachine.TestCase


def waiting_session() -> Session:
    session = domain.session("a", state=State.SPILLED)
    Deferral(max_requests=1, max_bytes=1).suspend(session)
    return session


def ignore(_: object) -> None:
    """Ignores the result."""


def test_too_many_requests_of_a_session_are_refused_with_a_retry_delay() -> None:
    deferral, session = Deferral(max_requests=2, max_bytes=100), waiting_session()
    for _ in range(2):
        deferral.defer(Deferred([session], ignore, ignore, 1))
    with pytest.raises(QueueFullError, match="2 requests already wait for session 'a'") as refused:
        deferral.defer(Deferred([session], ignore, ignore, 1))
    assert refused.value.retry_delay_s == 0.1
    assert deferral.num_bytes == 2


def test_too_many_bytes_of_all_sessions_are_refused_with_a_retry_delay() -> None:
    deferral, session = Deferral(max_requests=10, max_bytes=10), waiting_session()
    deferral.defer(Deferred([session], ignore, ignore, 6))
    with pytest.raises(QueueFullError, match="6 bytes of requests wait") as refused:
        deferral.defer(Deferred([session], ignore, ignore, 5))
    assert refused.value.retry_delay_s == 0.5
    deferral.refuse(session, ERROR)
    deferral.reserve(10)
    with pytest.raises(QueueFullError):
        deferral.reserve(1)
    deferral.release(10)
    assert deferral.num_bytes == 0


async def test_a_request_that_raises_costs_no_other_its_turn() -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    calls: list[str] = []

    def wrong(_: object) -> None:
        raise ValueError("a bug")

    for is_restored in (True, False):
        deferral, session = Deferral(max_requests=9, max_bytes=9), waiting_session()
        run = (wrong, lambda _: calls.append("run"))
        refuse = (lambda _: calls.append("answered"), lambda _: calls.append("refused"))
        if not is_restored:
            refuse = (wrong, refuse[1])
        for one, other in zip(run, refuse, strict=True):
            deferral.defer(Deferred([session], one, other, num_bytes=1))
        if is_restored:
            session.state = State.IDLE
            deferral.run(session)
            assert session.deferred is None
        else:
            deferral.refuse(session, ERROR)
        assert deferral.num_bytes == 0
    assert calls == ["answered", "run", "refused"]
    assert [str(problem["exception"]) for problem in problems] == ["a bug"] * 2


async def test_an_answer_that_raises_when_it_is_stored_costs_no_other_its_own() -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    persistence = Persistence(PLAIN)
    calls: list[Any] = []

    def wrong(_: object) -> None:
        raise ValueError("a bug")

    persistence.wait((0, 1), wrong)
    persistence.wait((0, 2), calls.append)
    persistence.wait((0, 3), calls.append)
    persistence.resolve((0, 2), None)
    assert calls == [None]
    persistence.resolve(None, ERROR)
    assert calls == [None, ERROR]
    assert [str(problem["exception"]) for problem in problems] == ["a bug"]
