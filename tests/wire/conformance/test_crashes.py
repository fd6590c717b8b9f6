"""The hard end of processes: nothing is left of them, neither processes nor sockets nor folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.local_service import LocalService, local_service
from tests.processes import children_of, is_there
from tests.waiting import wait_until
from tests.wire.conformance.calls import framed, path
from tests.wire.conformance.conftest import COMMAND, require, serving_pid
from tests.wire.conformance.http2 import Connection, call_headers


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where services of a test have their temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def envoy(folder: Path) -> Iterator[LocalService]:
    """A service that may be killed."""
    require("envoy")
    with local_service(None, {"wire": "envoy"}, command=COMMAND) as service:
        yield service


def folders(folder: Path) -> list[Path]:
    """What launchers have there now."""
    return list(folder.glob("carousel-envoy-*"))


def accepts(service: LocalService) -> bool:
    """Whether anybody listens at its port."""
    try:
        Connection(service.target).socket.close()
    except OSError:
        return False
    return True


def descendants(pid: int) -> set[int]:
    """A process, those that it has started, and those that these have."""
    return {pid}.union(*(descendants(child) for child in children_of(pid)))


@pytest.mark.parametrize("victim", ["launcher", "envoy", "both"])
def test_nothing_is_left_of_what_is_killed(envoy: LocalService, folder: Path, victim: str) -> None:
    """In the midst of calls. Of a launcher that is killed the folder is left, and removed by the next."""
    processes = descendants(envoy.process.pid)
    assert len(processes) == 2
    with Connection(envoy.target) as one:
        stream = one.start(call_headers(path("Stream")))
        one.data(stream, framed(do="wait", name="midst"))
        inside = serving_pid(envoy)
        if victim != "envoy":
            envoy.process.kill()
        if victim != "launcher":
            os.kill(inside, signal.SIGKILL)
        envoy.process.wait(20)
        wait_until(lambda: not any(map(is_there, processes)))
        one.wait_until_closed()
    assert not accepts(envoy)
    assert len(folders(folder)) == (victim != "envoy")
    if victim == "launcher":
        with local_service(None, {"wire": "envoy"}, command=COMMAND):
            assert len(folders(folder)) == 1
        assert folders(folder) == []


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT], ids=lambda number: number.name)
def test_a_crash_inside_of_envoy_ends_the_launcher(envoy: LocalService, folder: Path, number: signal.Signals) -> None:
    """With an exit code and a line in the log that say so."""
    processes = descendants(envoy.process.pid)
    with Connection(envoy.target) as one:
        one.start(call_headers(path("Unary")))
        one.data(1, framed(do="die", signal=int(number)), is_last=True)
        one.wait_until_closed()
    assert envoy.process.wait(30) == 1
    wait_until(lambda: not any(map(is_there, processes)))
    assert (envoy.log[-1]["event"], envoy.log[-1]["signal"]) == ("envoy.ended", number.name)
    assert folders(folder) == []


def test_two_signals_end_it_at_once(envoy: LocalService, folder: Path) -> None:
    """While a call would have kept it for the time of grace."""
    processes = descendants(envoy.process.pid)
    with Connection(envoy.target) as one:
        one.data(one.start(call_headers(path("Stream"))), framed(do="wait", name="slow"))
        one.ping()
        envoy.process.terminate()
        wait_until(lambda: any(line["event"] == "server.leaving" for line in envoy.log))
        envoy.process.terminate()
        assert envoy.process.wait(5) == -signal.SIGTERM
        wait_until(lambda: not any(map(is_there, processes)))


def test_a_start_that_fails_leaves_nothing(envoy: LocalService, folder: Path) -> None:
    port = envoy.target.rpartition(":")[2]
    command = [sys.executable, "-m", "service", "--example", "--store", "memory", "--wire", "envoy"]
    command += ["--port", port, "--metrics-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "address already in use" in done.stderr
    assert len(folders(folder)) == 1
    assert accepts(envoy)


def test_a_clean_end_leaves_nothing(folder: Path) -> None:
    require("envoy")
    with local_service(None, {"wire": "envoy"}, command=COMMAND) as service:
        processes = descendants(service.process.pid)
        assert service.stop() == 0
        assert not any(map(is_there, processes))
        assert not accepts(service)
    assert folders(folder) == []
    assert [path.name for path in folder.iterdir() if not path.name.endswith(".log")] == []
