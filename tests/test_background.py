"""A background task that raises is logged; a periodic task continues after an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import structlog

from service.background import Background
from tests.waiting import until


@pytest.fixture
async def background() -> AsyncIterator[Background]:
    made = Background()
    yield made
    await made.stop()


async def test_a_periodic_task_continues_after_errors_and_each_error_is_logged(background: Background) -> None:
    count = 0

    async def work() -> None:
        nonlocal count
        count += 1
        if count in (2, 3):
            raise OSError("the folder is away")

    with structlog.testing.capture_logs() as logs:
        background.repeat("watch", 0.005, work)
        await until(lambda: count >= 6)
    assert [(one["event"], one["task"], str(one["exc_info"])) for one in logs] == [
        ("background.failed", "watch", "the folder is away")
    ] * 2


async def test_a_task_that_raises_is_logged_and_forgotten(background: Background) -> None:
    async def work() -> None:
        raise ValueError("no")

    with structlog.testing.capture_logs() as logs:
        background.start("health", work())
        await until(lambda: bool(logs))
    assert logs[0]["event"] == "background.failed"
    await until(lambda: len(background) == 0)


async def test_stop_ends_every_task(background: Background) -> None:
    begun, ended = [], []

    async def work() -> None:
        begun.append(True)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    background.start("long", work())
    background.repeat("periodic", 0.001, work)
    await until(lambda: len(begun) == 2)
    await background.stop()
    assert len(ended) == 2
