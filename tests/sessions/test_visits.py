"""Visits (`Step` calls without a stream): they are in order, limited, and leave the session as its policy says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.engine.results import Fed
from service.errors import QueueFullError, SessionMovedError, SessionNotOpenError
from service.sessions.persistence import OnDisconnect, Persistence, SessionPolicy
from service.sessions.session import CloseReason, Session
from service.sessions.stores.base import if_idle
from tests.sessions.test_registry import Sessions, opened
from tests.waiting import turns

HELD = SessionPolicy(on_disconnect=OnDisconnect.HOLD, duration_s=10.0)
KEPT = SessionPolicy(on_disconnect=OnDisconnect.KEEP, duration_s=10.0)


async def left(it: Sessions, session_id: str, policy: SessionPolicy = HELD) -> Session:
    """Returns a session whose stream has ended."""
    session = await it.open(session_id)
    session.persistence = Persistence(policy)
    it.registry.detach(session)
    return session


async def test_turns_come_in_order_and_one_that_is_given_up_is_skipped(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        found: list[int] = []

        async def visit(number: int) -> None:
            async with it.service.visits.turn("s"):
                found.append(number)
                await turns()
                assert found[-1] == number, "nobody else has had a turn meanwhile"

        tasks = [asyncio.create_task(visit(number)) for number in range(6)]
        await turns()
        tasks[2].cancel()
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert found == [0, 1, 3, 4, 5]
        assert it.service.visits.num_visited == 0
        async with it.service.visits.turn("s"), it.service.visits.turn("another"):
            pass


async def test_calls_that_wait_for_one_session_are_bounded(tiny_repository: Path) -> None:
    async with opened(tiny_repository, max_in_flight=2) as it, it.service.visits.turn("s"):

        async def visit() -> None:
            async with it.service.visits.turn("s"):
                pass

        waiting = [asyncio.create_task(visit()) for _ in range(2)]
        await turns()
        with pytest.raises(QueueFullError, match="2 calls already wait for session 's'"):
            await visit()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        task = asyncio.create_task(visit())
        await turns()
        assert not task.done(), "there is room again"
        task.cancel()


async def test_a_visit_pauses_and_restarts_the_hold_time(tiny_repository: Path) -> None:
    async with opened(tiny_repository, idle_timeout_s=100.0) as it:
        session = await left(it, "s")
        it.now_s += 9.0
        assert await it.service.visits.find("s") == (session, True)
        it.now_s += 50.0
        it.service.expiry.expire()
        assert not session.is_over
        it.service.visits.leave(session)
        it.now_s += 9.0
        it.service.expiry.expire()
        assert not session.is_over
        it.now_s += 1.0
        it.service.expiry.expire()
        assert ("closed", "s", "expired", 0) in it.events.reports


async def test_a_session_that_a_stream_has_is_refused_and_one_that_it_takes_is_left_to_it(
    tiny_repository: Path,
) -> None:
    async with opened(tiny_repository) as it:
        await it.open("streamed")
        with pytest.raises(SessionNotOpenError, match="'streamed' is attached to a stream"):
            await it.service.visits.find("streamed")
        session = await left(it, "s")
        await it.service.visits.find("s")
        answered = it.feed(session, 0, [5])
        await it.service.resume.resume("s", lambda ended, reason: it.notices.append((ended.id, reason)))
        assert isinstance((await answered)[1], Fed), "its feed is answered all the same"
        with pytest.raises(SessionNotOpenError):
            await it.service.visits.close(session, CloseReason.CLIENT)
        it.service.visits.leave(session)
        assert not session.is_detached
        assert not it.registry.held
        assert not it.notices


async def test_the_end_of_a_visit_does_what_the_policy_says(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        free = await it.open("free")
        it.service.visits.begin(free)
        it.service.visits.leave(free)
        assert ("closed", "free", "disconnect", 0) in it.events.reports
        held, kept = await left(it, "held"), await left(it, "kept", KEPT)
        it.registry.is_draining = True
        it.service.visits.leave(held)
        it.service.visits.leave(kept)
        assert ("closed", "kept", "moved", 0) in it.events.reports, "another server may have it"
        assert not held.is_over
        with pytest.raises(SessionMovedError):
            await it.service.visits.close(kept, CloseReason.CLIENT)


async def test_a_request_for_an_idle_session_gets_only_an_unused_one(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await left(it, "s", KEPT)
        answered = it.feed(session, 0, [5] * 5000)
        it.service.wanted(if_idle("s"))
        assert not session.is_over, "it is at work"
        await answered
        await it.service.visits.find("s")
        it.service.wanted(if_idle("s"))
        assert not session.is_over, "it is visited"
        it.service.visits.leave(session)
        await it.service.resume.resume("s", lambda ended, reason: it.notices.append((ended.id, reason)))
        it.service.wanted(if_idle("s"))
        assert not session.is_over, "a stream has it"
        it.registry.detach(session)
        it.service.wanted(if_idle("s"))
        assert ("closed", "s", "moved", 5000) in it.events.reports
