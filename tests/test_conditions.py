"""A start that fails gives the reason once and leaves nothing behind; `--check` finds the same reason before."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from carousel import Client
from examples.ports import free_port, wait_for_port
from service.check import check
from service.conditions import demand
from service.process import StartError
from service.sessions.stores.lmdb import LmdbStore
from service.settings import Settings
from tests.bundles import write_language_model
from tests.certificates import Authority
from tests.fork_server import run
from tests.services import local_service
from tests.waiting import wait_until

ADDRESS = "127.0.0.1"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_language_model(tmp_path / "models")
    return tmp_path / "models"


def settings(folder: Path, **given: object) -> Settings:
    """Returns settings with which a server starts, changed by `given`."""
    usual = {"models": folder / "models", "data_folder": folder / "data", "port": 0, "metrics_port": 0}
    return Settings.model_validate({**usual, "wire": "grpcio", **given})


def short_key(folder: Path) -> Path:
    (folder / "key").write_bytes(b"short")
    return folder / "key"


def key_lines(folder: Path, text: str) -> Path:
    (folder / "keys").write_text(text)
    (folder / "keys").chmod(0o600)
    return folder / "keys"


def a_file(folder: Path) -> Path:
    (folder / "file").write_bytes(b"")
    return folder / "file"


def damaged_store(folder: Path) -> Path:
    (folder / "old" / "sessions").mkdir(parents=True)
    (folder / "old" / "sessions" / "data.mdb").write_bytes(b"some text")
    return folder / "old"


def foreign_key_pair(folder: Path) -> dict[str, object]:
    authority = Authority()
    (folder / "cert").write_bytes(authority.issue_server().certificate)
    (folder / "other.key").write_bytes(authority.issue_server().key)
    return {"tls_cert_file": folder / "cert", "tls_key_file": folder / "other.key"}


WRONG: dict[str, tuple[Callable[[Path], dict[str, object]], str]] = {
    "no folder of models": (lambda folder: {"models": folder / "none"}, "models = {folder}/none is not a folder: "),
    "no such model": (
        lambda folder: {"model_runtimes": {"g2p": {"num_threads": 2}}},
        "model_runtimes: 'g2p' is not in {folder}/models (available: tiny-lm)",
    ),
    "no certificate": (
        lambda folder: {"tls_cert_file": "/nope", "tls_key_file": "/nope"},
        "tls_cert_file = /nope cannot be read: No such file or directory",
    ),
    "another certificate's key": (
        foreign_key_pair,
        "tls_cert_file = {folder}/cert and tls_key_file = {folder}/other.key are not a certificate and its",
    ),
    "no tokens": (lambda folder: {"tokens_file": "/nope"}, "tokens_file = /nope cannot be read: No such file or"),
    "a store without a key": (lambda folder: {"store": "redis"}, "store = redis needs snapshot_key_file: "),
    "no key": (lambda folder: {"snapshot_key_file": "/nope"}, "snapshot_key_file = /nope cannot be read: No such file"),
    "a short key": (
        lambda folder: {"snapshot_key_file": short_key(folder)},
        "snapshot_key_file = {folder}/key has 5 bytes, it must have 16 or more",
    ),
    "no storage keys": (
        lambda folder: {"storage_key_file": "/nope"},
        "storage_key_file = /nope cannot be read: No such file",
    ),
    "a storage key without its id": (
        lambda folder: {"storage_key_file": key_lines(folder, "AAAA")},
        "storage_key_file = {folder}/keys, line 1 must be `ID BASE64`: ",
    ),
    "a file for a folder": (lambda folder: {"data_folder": a_file(folder)}, "{folder}/file is not a folder: move it"),
    "a file above the folder": (
        lambda folder: {"data_folder": a_file(folder) / "data"},
        "{folder}/file is not a folder",
    ),
    "a folder where none can be made": (
        lambda folder: {"data_folder": Path("/proc/carousel/data")},
        "/proc/carousel/data cannot be made: the folder /proc is read-only for the server's user (",
    ),
    "one port for calls and metrics": (
        lambda folder: {"port": 50999, "metrics_port": 50999},
        "port = 50999 and metrics_port = 50999 are the same port: ",
    ),
    "one port for calls and health": (
        lambda folder: {"port": 50999, "health_port": 50999},
        "port = 50999 and health_port = 50999 are the same port: ",
    ),
    "an address of another machine": (
        lambda folder: {"host": "192.0.2.1"},
        "cannot listen on 192.0.2.1:0: cannot assign requested address",
    ),
    "a name without an address": (lambda folder: {"host": "nope.invalid"}, "cannot listen on nope.invalid:0: "),
    "a damaged store": (
        lambda folder: {"data_folder": damaged_store(folder)},
        "{folder}/old/sessions/data.mdb is not an LMDB file: ",
    ),
    "no Redis": (
        lambda folder: {
            "store": "redis",
            "redis_url": "redis://:hush@127.0.0.1:1/0",
            "snapshot_key_file": Path(__file__),
        },
        "the store at redis://127.0.0.1:1/0 fails: ",
    ),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG.keys())
def test_check_finds_what_makes_a_start_fail(
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: Callable[[Path], dict[str, object]],
    message: str,
) -> None:
    """Check and start use the same function, give the same message, and create no folder."""
    wrong = settings(tmp_path, **given(tmp_path))
    with pytest.raises(StartError) as refused:
        demand(wrong)
    assert str(refused.value).startswith(message.format(folder=tmp_path))
    assert check(wrong) == 1
    assert f"FAILED  {refused.value}\n" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()


def test_check_passes_and_creates_nothing(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = set(tmp_path.rglob("*"))
    demand(settings(tmp_path))
    assert check(settings(tmp_path)) == 0
    assert capsys.readouterr().out == "ok      tiny-lm/1\n"
    assert set(tmp_path.rglob("*")) == there


def test_a_check_warns_of_storage_keys_that_others_may_read(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = key_lines(tmp_path, f"2026 {'A' * 43}=")
    keys.chmod(0o644)
    assert check(settings(tmp_path, storage_key_file=keys)) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0] == f"ok      {keys}"
    assert output[1].startswith(
        f"WARNING {keys} has mode 0644: other users of this machine may decrypt stored sessions"
    )


def test_a_signing_key_that_is_missing_beside_a_store_is_a_warning(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LmdbStore(tmp_path / "data" / "sessions").close()
    assert check(settings(tmp_path)) == 0
    key = tmp_path / "data" / "snapshot.key"
    assert capsys.readouterr().out.startswith(f"WARNING {key} is missing: a start makes a new key, which cannot read")
    assert check(settings(tmp_path, store="memory")) == check(settings(tmp_path, snapshot_key_file=__file__)) == 0
    key.write_bytes(bytes(32))
    assert check(settings(tmp_path)) == 0
    assert "WARNING" not in capsys.readouterr().out


def test_check_beside_a_running_server_reports_what_is_in_use_and_passes(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server((ADDRESS, 0)) as taken, closing(LmdbStore(tmp_path / "data" / "sessions")):
        port = taken.getsockname()[1]
        (tmp_path / "data" / "snapshot.key").write_bytes(bytes(32))
        assert check(settings(tmp_path, port=port)) == 0
    assert capsys.readouterr().out == (
        f"IN USE  {ADDRESS}:{port}: address already in use\n"
        f"IN USE  {tmp_path / 'data'}: another process uses it\n"
        "ok      tiny-lm/1\n"
    )


@pytest.mark.parametrize("wire", ["grpcio", "envoy"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--models=none"], "models = none is not a folder"), (["--metrics-port={port}"], "cannot listen on 127.0.0.1:")],
)
def test_a_start_that_fails_says_why_once_and_makes_no_folder(
    tmp_path: Path, wire: str, flags: list[str], message: str
) -> None:
    with socket.create_server((ADDRESS, 0)) as taken:
        port = taken.getsockname()[1]
        arguments = [f"--wire={wire}", f"--data-folder={tmp_path / 'data'}", "--port=0", "--metrics-port=0"]
        done = run("service", *arguments, "--log-format=json", *(flag.format(port=port) for flag in flags))
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [line["event"] for line in lines] == ["wire.chosen", "server.starting", "server.cannot_start"]
    assert lines[-1]["reason"].startswith(message)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("wire", ["grpcio", "envoy"])
def test_of_two_servers_that_start_on_one_port_one_serves(models: Path, tmp_path: Path, wire: str) -> None:
    """Either may serve. The other one reports that the port is in use."""
    port = free_port()
    command = [sys.executable, "-m", "service", f"--wire={wire}", f"--models={models}", f"--port={port}"]
    command += ["--metrics-port=0", "--log-format=json", "--store=memory"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        ended = wait_until(lambda: next((one for one in both if one.poll() is not None), None), 30.0)
        (other,) = [process for process in both if process is not ended]
        wait_for_port(port, other)
        with Client(f"{ADDRESS}:{port}") as client:
            assert [info.model for info in client.models()] == ["tiny-lm"]
        assert other.poll() is None
    finally:
        for process in both:
            process.terminate()
        logs = [process.communicate(timeout=60)[1] for process in both]
    lines = logs[both.index(ended)].splitlines()
    refused = [json.loads(line) for line in lines if line.startswith("{")][-1]  # gRPC's library writes lines of its own
    assert (ended.returncode, refused["event"]) == (1, "server.cannot_start")
    assert refused["reason"].startswith(f"cannot listen on {ADDRESS}:{port}: ")


@pytest.mark.parametrize("wire", ["grpcio", "envoy"])
def test_serving_nothing_is_a_warning(tmp_path: Path, wire: str) -> None:
    with local_service(tmp_path, {"wire": wire, "health-port": 0}) as service:
        (warned,) = [line for line in service.log if line["level"] == "warning"]
        started = next(line for line in service.log if line["event"] == "server.started")
        done = run("service", "health", f"--health-port={started['health_port']}")
    assert (warned["event"], warned["folder"], warned["versions"]) == ("models.none_served", str(tmp_path), 0)
    assert (done.returncode, done.stdout) == (1, b"NOT_SERVING\n")
