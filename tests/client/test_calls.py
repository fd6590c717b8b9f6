"""One-call methods of both clients: models, sessions, and how failures are raised."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from carousel import (
    ModelStatus,
    NotFoundError,
    ResourceExhaustedError,
    SessionInfo,
    SessionState,
)

from .shells import Shell


async def test_models_are_listed_and_found(shell: Shell) -> None:
    toy, wrong = await shell.models()
    assert (toy.model, toy.version, toy.status, toy.state_size_bytes) == ("toy", 3, ModelStatus.SERVING, 64)
    assert toy.target_vocabulary == ("<s>", "</s>", "A", "B", "C", "D")
    assert (wrong.status, wrong.problem) == (ModelStatus.FAILED, "torn")
    assert await shell.model("toy") == toy


async def test_a_failed_call_raises_the_servers_error_or_grpcs(shell: Shell) -> None:
    with pytest.raises(ResourceExhaustedError) as full:
        await shell.model("full")
    assert (full.value.reason, full.value.retry_delay) == ("TOO_MANY_SESSIONS", timedelta(seconds=2))
    with pytest.raises(NotFoundError, match="model 'none' is unknown") as none:
        await shell.model("none")
    assert (none.value.reason, none.value.retry_delay) == ("", None)


async def test_sessions_are_listed_page_by_page_found_and_closed(shell: Shell) -> None:
    infos = await shell.list_sessions("other")
    assert [(info.session_id, info.model) for info in infos] == [("s0", "other"), ("s1", "other"), ("s2", "other")]
    opened, used = datetime.fromtimestamp(10, UTC), datetime.fromtimestamp(20, UTC)
    assert await shell.get_session("mine") == SessionInfo(
        "mine", "toy", 3, 4, SessionState.IDLE, opened, used, "int8", "strict", 3, attached=True, marks=(1, 2)
    )
    assert await shell.close_session("mine") == 4
