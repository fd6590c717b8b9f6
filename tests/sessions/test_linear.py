"""Work per session does not grow with the number of sessions: the tests count executed lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from service.engine.results import Result
from service.sessions import checkpoints, requests
from service.sessions.generation import LastFeed
from service.sessions.persistence import Durability, OnDisconnect, SessionPolicy
from service.sessions.session import CloseReason, Session
from tests.sessions.test_registry import Sessions, opened
from tests.waiting import turns, until

HELD = SessionPolicy(Durability.CHECKPOINT, OnDisconnect.HOLD, 60.0)


@contextmanager
def counted(module: ModuleType) -> Iterator[list[int]]:
    """Counts the executed lines of a module."""
    count = [0]
    path = module.__file__

    def line(frame: FrameType, event: str, argument: object) -> Any:
        count[0] += event == "line"
        return line

    def call(frame: FrameType, event: str, argument: object) -> Any:
        return line if frame.f_code.co_filename == path else None

    sys.settrace(call)
    try:
        yield count
    finally:
        sys.settrace(None)


async def many(it: Sessions, count: int) -> list[Session]:
    """Opens sessions that are checkpointed."""
    sessions, answers = [], list[Result]()
    for _ in range(count):
        new = it.service.opening.prepare(
            it.served,
            "",
            None,
            None,
            request=it.request(None, 1, lambda request, result: answers.append(result)),
            on_ended=lambda session, reason: None,
            policy=HELD,
            is_chosen=False,
        )
        it.service.opening.begin(new)
        sessions.append(new.session)
    await until(lambda: len(answers) == count)
    return sessions


async def leave_while_all_are_stored(it: Sessions, count: int) -> int:
    """Detaches sessions that have changed since a slow store began to write them. Returns the number of executed
    lines."""
    sessions = await many(it, count)
    for _ in range(2):
        for future in [it.feed(session, None, [5]) for session in sessions]:
            await future
        for session in sessions:
            it.service.checkpoints.hasten(session)
        await until(lambda: all(session.persistence.is_writing for session in sessions))
        await turns(10)
    assert all(session.persistence.is_writing and session.persistence.is_dirty for session in sessions)
    with counted(checkpoints) as lines:
        for session in sessions:
            it.registry.detach(session)
        await turns(10)
    return lines[0]


async def send_again_what_was_cancelled(it: Sessions, count: int) -> int:
    """Repeats feeds whose cancels came too late: the feeds have been applied. Returns the number of executed lines."""
    sessions = await many(it, count)
    answers = []
    for session in sessions:
        answers.append(it.feed(session, 0, [5]))
        assert isinstance(session.last, LastFeed)
        session.last.is_cancelled = True
        answers.append(it.feed(session, 0, [5]))
    with counted(requests) as lines:
        for answer in answers:
            await answer
    for session in sessions:
        it.registry.close(session, CloseReason.CLIENT, notify=False)
    return lines[0]


@pytest.mark.parametrize("case", [leave_while_all_are_stored, send_again_what_was_cancelled])
async def test_four_times_the_sessions_take_no_more_for_each(tiny_repository: Path, case: Callable[..., Any]) -> None:
    async with opened(tiny_repository) as it:
        few = await case(it, 10)
    async with opened(tiny_repository) as it:
        assert few < await case(it, 40) < 5 * few
