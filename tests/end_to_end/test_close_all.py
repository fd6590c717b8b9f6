"""One call closes all sessions of a principal (open, held and stored), and no session of another principal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from carousel import AsyncClient, Client, InvalidArgumentError, NotFoundError, PermissionDeniedError
from carousel.cli.app import app
from tests.services import local_service

MODEL = "tiny-endless"
TOKENS = {name: f"token-of-{name}-" + 32 * "x" for name in ("alice", "bob", "admin")}


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, object]:
    lines = []
    for name, token in TOKENS.items():
        lines += [f"[principals.{name}]", f'token_sha256 = ["{hashlib.sha256(token.encode()).hexdigest()}"]']
    (tmp_path / "tokens.toml").write_text("\n".join([*lines, "admin = true", ""]))
    return {"tokens-file": tmp_path / "tokens.toml", "store": "lmdb", "data-folder": tmp_path / "data"}


def client(target: str, name: str) -> Client:
    return Client(target, token=TOKENS[name])


def keep(one: Client, session_id: str) -> None:
    """Opens a session that is stored. Its stream ends when the client is closed."""
    one.session(MODEL, session_id=session_id, durability="strict", on_disconnect="keep").feed([5])


def is_gone(one: Client, session_id: str) -> bool:
    try:
        one.resume(session_id).feed([6])
    except NotFoundError:
        return True
    return False


def test_sessions_in_memory_and_in_the_store_are_closed_and_those_of_others_stay(
    tiny_repository: Path, flags: dict[str, object]
) -> None:
    with (
        local_service(tiny_repository, flags) as service,
        client(service.target, "alice") as alice,
        client(service.target, "bob") as bob,
    ):
        for one in (alice, bob):
            keep(one, "stored")
    with (
        local_service(tiny_repository, flags) as service,
        client(service.target, "alice") as alice,
        client(service.target, "bob") as bob,
    ):
        keep(alice, "held")
        with alice.session(MODEL, session_id="open") as session:
            session.feed([5])
            assert alice.sessions.close_all() == 3
        assert [is_gone(alice, name) for name in ("stored", "held", "open")] == [True, True, True]
        assert alice.sessions.close_all("alice") == 0
        assert not is_gone(bob, "stored")


def test_only_an_admin_closes_sessions_of_others(tiny_repository: Path, flags: dict[str, object]) -> None:
    with (
        local_service(tiny_repository, flags) as service,
        client(service.target, "alice") as alice,
        client(service.target, "bob") as bob,
        client(service.target, "admin") as admin,
    ):
        keep(bob, "stored")
        with pytest.raises(PermissionDeniedError):
            alice.sessions.close_all("bob")
        assert not is_gone(bob, "stored")
        with pytest.raises(InvalidArgumentError, match="principal = 'bob/stored' must be 1 to 64 of the characters"):
            admin.sessions.close_all("bob/stored")
        assert admin.sessions.close_all() == 0
        assert admin.sessions.close_all("bob") == 1
        assert is_gone(bob, "stored")


async def test_without_principals_all_are_closed_and_what_was_spilled_with_them(
    tiny_repository: Path, tmp_path: Path
) -> None:
    flags = {"store": "lmdb", "data-folder": tmp_path, "max-slots": 1}
    with local_service(tiny_repository, flags) as service, Client(service.target) as one:
        for name in ("first", "second"):
            keep(one, name)
        with one.session(MODEL, session_id="plain") as plain, one.session(MODEL, session_id="last") as last:
            plain.feed([5])
            last.feed([5])
            async with AsyncClient(service.target) as other:
                assert await other.sessions.close_all() == 4
            assert list(one.sessions.list()) == []


def test_the_command_prints_the_number_of_closed_sessions(tiny_repository: Path, tmp_path: Path) -> None:
    with local_service(tiny_repository, {"store": "lmdb", "data-folder": tmp_path}) as service:
        with Client(service.target) as one:
            keep(one, "first")
        done = CliRunner().invoke(app, ["--target", service.target, "sessions", "close-all", "--json"])
        assert (done.exit_code, json.loads(done.stdout)) == (0, {"closed_count": 1})
