"""Watchers of sessions: their queues are limited, and they leave nothing behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.engine.beam import Hypothesis
from service.engine.decoding import FinishReason
from service.engine.jobs import OutputKind, OutputSpec
from service.engine.results import Failed, Generated, Searched
from service.errors import RequestCancelledError, ShuttingDownError, TooManyWatchersError, WatcherDroppedError
from service.sessions.lifecycle import State
from service.sessions.persistence import Durability, OnDisconnect, Persistence, SessionPolicy
from service.sessions.session import CloseReason, Session
from service.sessions.watches import Change, Consumed, Watcher, WatchEvent
from tests.sessions.test_registry import Sessions, opened
from tests.waiting import turns

EVERY = OutputSpec(OutputKind.LOGITS, every_position=True)


async def begun(it: Sessions, session: Session) -> Watcher:
    """Returns a watcher that has received its first event, `WATCHED`."""
    watcher = it.service.watches.watch(session)
    found = await taken(watcher)
    assert found.happening is Change.WATCHED
    return watcher


async def taken(watcher: Watcher) -> WatchEvent:
    found = await watcher.next()
    assert found is not None
    return found


def is_quiet(it: Sessions) -> bool:
    """Returns whether there is no watcher and no queued event."""
    return not it.service.watches.of_session and it.service.watches.num_bytes == 0


async def test_only_a_watcher_with_256_unread_events_is_dropped(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await it.open("s")
        slow, quick = await begun(it, session), await begun(it, session)
        for position in range(256):
            await it.feed(session, position, [5])
            assert (await taken(quick)).moment == (0, position + 1)
        await it.feed(session, 256, [5])
        assert (await taken(quick)).moment == (0, 257)
        with pytest.raises(WatcherDroppedError, match="256 events of session 's' wait to be read or stored"):
            await slow.next()
        assert it.service.watches.num_bytes == 0
        assert it.service.watches.of_session == {session: [slow, quick]}, "its place is taken until its call is over"
        slow.close()
        assert it.service.watches.of_session == {session: [quick]}
        quick.close()
        assert is_quiet(it)


async def test_bytes_are_bounded_but_for_one_event_that_is_larger(tiny_repository: Path) -> None:
    tokens = [5] * 20_000  # the outputs take about 4 MB
    async with opened(tiny_repository) as it:
        session = await it.open("s")
        watcher = await begun(it, session)
        await it.feed(session, 0, tokens, EVERY)
        assert len((await taken(watcher)).happening.outputs) == len(tokens)  # type: ignore[union-attr]
        await it.feed(session, 20_000, tokens, EVERY)
        await it.feed(session, 40_000, [5])
        with pytest.raises(WatcherDroppedError, match="1 event of session 's' waits"):
            await watcher.next()
        watcher.close()
        assert is_quiet(it)


async def test_all_watchers_together_have_a_bound_and_those_with_the_most_go_first(tiny_repository: Path) -> None:
    async with opened(tiny_repository, max_unwritten_bytes=1500) as it:
        one, other, ended = await it.open("one"), await it.open("other"), await it.open("ended")
        slow, quick, late = [await begun(it, session) for session in (one, other, ended)]
        for position in range(3):
            await it.feed(one, position, [5], OutputSpec(OutputKind.NONE))
        for position in range(3):
            await it.feed(other, position, [5])
            assert (await taken(quick)).moment == (0, position + 1)
        await it.feed(ended, 0, [5] * 5)
        it.registry.close(ended, CloseReason.CLIENT, notify=False)
        await it.feed(other, 3, [5])
        assert (await taken(quick)).moment == (0, 4)
        with pytest.raises(WatcherDroppedError, match="3 events of session 'one' wait"):
            await slow.next()
        await it.feed(other, 4, [5] * 30)
        assert (await taken(quick)).moment == (0, 34), "there is always room for one"
        with pytest.raises(WatcherDroppedError, match="of session 'ended' wait"):
            await late.next()
        for watcher in (slow, late, quick):
            watcher.close()
        assert is_quiet(it)
        assert it.service.watches.num_watchers == 0


async def test_the_end_of_a_session_is_delivered_after_earlier_events(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await it.open("s")
        watcher = await begun(it, session)
        await it.feed(session, 0, [5, 6])
        it.registry.close(session, CloseReason.CLIENT, notify=False)
        assert isinstance((await taken(watcher)).happening, Consumed)
        assert await watcher.next() == WatchEvent((0, 2), CloseReason.CLIENT, 0)
        watcher.leave(ShuttingDownError("too late"))
        assert await watcher.next() is None
        watcher.close()
        assert is_quiet(it)


async def test_a_watch_can_end_while_its_session_continues(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await it.open("s")
        watcher = await begun(it, session)
        waiting = asyncio.create_task(watcher.next())
        await turns()
        watcher.leave(ShuttingDownError("it leaves"))
        with pytest.raises(ShuttingDownError, match="it leaves"):
            await waiting
        watcher.close()
        assert is_quiet(it)
        assert not session.is_over


async def test_a_session_has_so_many_watchers_and_no_more(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session, other = await it.open("s"), await it.open("other")
        watchers = [it.service.watches.watch(session) for _ in range(16)]
        with pytest.raises(TooManyWatchersError, match="16 calls already watch session 's'"):
            it.service.watches.watch(session)
        watchers += [it.service.watches.watch(other)]
        watchers[3].close()
        watchers += [it.service.watches.watch(session)]
        for watcher in watchers:
            watcher.close()
        assert is_quiet(it)


async def test_events_of_a_generation_are_delivered_as_it_produces_tokens(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await it.open("s")
        watcher = await begun(it, session)
        results = await it.generate(session, 5)
        found = [(await taken(watcher)).happening for _ in results]
        assert found == results
        assert [len(one.token_ids) for one in found if isinstance(one, Generated)]
        watcher.close()
        assert is_quiet(it)


async def test_watching_uses_no_session_and_costs_nothing_when_it_is_over(tiny_repository: Path) -> None:
    async with opened(tiny_repository, idle_timeout_s=10.0) as it:
        session = await it.open("s")
        it.now_s += 9.0
        watcher = await begun(it, session)
        assert session.last_used_s == it.now_s - 9.0
        it.now_s += 1.5
        it.service.expiry.expire()
        assert (await taken(watcher)).happening is CloseReason.IDLE
        assert await watcher.next() is None
        assert is_quiet(it)


async def test_a_session_that_gives_its_slot_up_is_seen_to_leave_and_to_come_back(tiny_repository: Path) -> None:
    async with opened(tiny_repository, num_slots=1) as it:
        it.service.start()
        session = await it.open("s")
        watcher = await begun(it, session)
        other = await it.open("other")
        assert (await taken(watcher)).happening is Change.SPILLED
        await it.service.spill.act(session, lambda: None)
        assert (await taken(watcher)).happening is Change.UNSPILLED
        assert other.state is State.SPILLED
        watcher.close()
        await it.service.stop(1.0)
        assert is_quiet(it)


async def test_the_event_of_an_interrupted_search_has_the_consumed_tokens(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await it.open("s")
        watcher, watches = await begun(it, session), it.service.watches
        best = Hypothesis([5, 6, 7], None, -1.0, -3.0, [-1.0, -1.0, -1.0], FinishReason.MAX_TOKENS)
        job: Any = SimpleNamespace(search=SimpleNamespace(results=lambda: [best]))
        failed = Failed(2, RequestCancelledError("it was cancelled"))
        watches.searched(session, job, failed, 2)
        assert (await taken(watcher)).happening == Generated(2, [5, 6], None, None)
        watches.searched(session, job, failed, 0)
        watches.searched(session, job, Searched(3, [best]), 3)
        assert (await taken(watcher)).happening == Searched(3, [best])
        watcher.close()
        assert is_quiet(it)


async def test_events_that_wait_for_the_store_are_delivered_in_order_or_dropped(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await it.open("s")
        session.persistence = Persistence(SessionPolicy(Durability.STRICT, OnDisconnect.HOLD, 60.0), stored=(0, 0))
        watcher, watches = await begun(it, session), it.service.watches
        next_one = asyncio.create_task(watcher.next())
        for position in (1, 2, 3):
            session.position = position
            watches.changed(session, Change.CANCELLED)
        await turns()
        assert not next_one.done()
        session.persistence.stored = (0, 2)
        watches.more_stored(session)
        assert await next_one == WatchEvent((0, 1), Change.CANCELLED, 200)
        session.persistence.is_unconfirmed = True  # another server may have the session, so no event is delivered
        next_one = asyncio.create_task(watcher.next())
        watches.more_stored(session)
        await turns()
        assert not next_one.done()
        session.persistence.is_unconfirmed = False
        watches.more_stored(session)
        assert await next_one == WatchEvent((0, 2), Change.CANCELLED, 200)
        watches.ended(session, CloseReason.SHUTDOWN)
        assert await watcher.next() == WatchEvent((0, 2), CloseReason.SHUTDOWN, 0)
        assert await watcher.next() is None
        assert is_quiet(it)


async def test_a_session_that_another_server_may_have_ends_at_no_known_position(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await it.open("s")
        watcher = await begun(it, session)
        await it.feed(session, 0, [5])
        session.own_persistence().is_unconfirmed = True
        watching = asyncio.create_task(watcher.next())
        await turns()
        assert not watching.done()
        it.registry.lose(session)
        assert await watching == WatchEvent((0, 0), CloseReason.MOVED, 0)
        assert is_quiet(it)
