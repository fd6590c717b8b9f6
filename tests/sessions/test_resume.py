"""Sessions that are closed in the store, or end while a caller waits for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import SessionMovedError, SessionNotFoundError
from tests.sessions.test_registry import opened
from tests.sessions.test_visits import KEPT, left


async def test_the_end_of_a_stored_session_has_the_time_of_the_injected_clock(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await left(it, "s", KEPT)
        it.service.storage.start(lambda session_id: None)
        it.registry.hand_over(session)
        assert await it.service.resume.close("s") == 0
        with pytest.raises(SessionNotFoundError, match="was closed by a client at position 0, 2023-11-14T22:30:00"):
            it.registry.get("s")
        await it.service.stop(5.0)


async def test_a_call_for_a_session_that_was_handed_over_is_refused_as_moved(tiny_repository: Path) -> None:
    async with opened(tiny_repository) as it:
        session = await left(it, "s", KEPT)
        it.registry.deferral.suspend(session)
        it.registry.hand_over(session)
        with pytest.raises(SessionMovedError):
            await it.service.spill.act(session, lambda: None)
