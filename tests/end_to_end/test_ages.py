"""A real server closes sessions at their maximum age and tells clients why, also sessions stored before the limit was
set."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from carousel import (
    AsyncClient,
    CarouselError,
    Client,
    CloseReason,
    FailedPreconditionError,
    NotFoundError,
    RequestCancelledError,
    Session,
    SessionClosedError,
)
from carousel.cli.app import app
from tests.services import local_service

MODEL = "tiny-endless"
WORDS = "it reached the age that the server allows"
GONE = "is gone: it was closed because it reached the age that the server allows"


def feed_for_ever(session: Session) -> None:
    while True:
        session.feed([5])


def test_a_busy_blocking_client_gets_the_reason_why_its_session_ends(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"max-age-s": 1.0}) as service, Client(service.target) as client:
        session = client.session(MODEL, session_id="aged")
        with pytest.raises((SessionClosedError, RequestCancelledError)) as found:  # the second if a feed is in flight
            feed_for_ever(session)
        assert isinstance(found.value, CarouselError)
        assert found.value.metadata["close_reason"] == "max_age"
        with pytest.raises(SessionClosedError, match=WORDS) as raised:
            session.feed([5])
        assert raised.value.close_reason is CloseReason.MAX_AGE
        with pytest.raises(NotFoundError, match=GONE):
            client.resume("aged").feed([5])
        with urllib.request.urlopen(service.metrics_url) as answer:
            metrics = answer.read().decode()
        assert f'carousel_sessions_closed_total{{model="{MODEL}",reason="max_age",version="1"}} 1.0' in metrics


async def test_an_asyncio_client_and_a_watcher_get_the_reason_why_a_session_ends(tiny_repository: Path) -> None:
    with local_service(tiny_repository, {"max-age-s": 1.0}) as service:
        async with AsyncClient(service.target) as client:
            session = await client.session(MODEL, session_id="aged")
            watched = CliRunner().invoke(app, ["--target", service.target, "watch", "aged", "--json"])
            assert json.loads(watched.stdout.splitlines()[-1])["reason"] == "max_age"
            with pytest.raises(SessionClosedError, match=WORDS):
                await session.feed([5])


def test_an_age_limit_applies_to_sessions_stored_before_it_was_set(tiny_repository: Path, tmp_path: Path) -> None:
    flags: dict[str, object] = {"store": "lmdb", "data-folder": tmp_path / "data"}
    with local_service(tiny_repository, flags) as service, Client(service.target) as client:
        client.session(MODEL, session_id="old", durability="strict", on_disconnect="keep").feed([5])
        snapshot = client.sessions.snapshot("old")
    time.sleep(0.2)  # the sessions become too old for the next server
    with local_service(tiny_repository, {**flags, "max-age-s": 0.2}) as service, Client(service.target) as client:
        with pytest.raises(NotFoundError, match=GONE):
            client.resume("old").feed([5])
        with pytest.raises(FailedPreconditionError, match="SNAPSHOT_EXPIRED"):
            client.sessions.restore(snapshot, session_id="copy")
        with urllib.request.urlopen(service.metrics_url) as answer:
            assert 'reason="max_age",version="1"} 1.0' in answer.read().decode()
    with (
        local_service(tiny_repository, flags) as service,
        Client(service.target) as client,
        pytest.raises(NotFoundError, match=GONE),
    ):
        client.resume("old").feed([5])
