"""When a process is killed or crashes, no processes, sockets or folders stay behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.local_service import LocalService
from examples.processes import children, is_running
from tests.services import local_service
from tests.waiting import wait_until
from tests.wire.conformance.calls import framed, path
from tests.wire.conformance.conftest import COMMAND, require, serving_pid
from tests.wire.conformance.http2 import Connection, call_headers


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for the temporary files of a test's services. Its path is short, as a socket's must be."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


@pytest.fixture
def envoy(folder: Path) -> Iterator[LocalService]:
    """A service that the test may kill."""
    require("envoy")
    with local_service(None, {"wire": "envoy"}, command=COMMAND) as service:
        yield service


def folders(folder: Path) -> list[Path]:
    """Returns the temporary folders that launchers have now."""
    return list(folder.glob("carousel-envoy-*"))


def accepts(service: LocalService) -> bool:
    """Returns whether a process listens on the service's port."""
    try:
        Connection(service.target).socket.close()
    except OSError:
        return False
    return True


def descendants(pid: int) -> set[int]:
    """Returns the ids of a process and of all its descendants."""
    return {pid}.union(*(descendants(child) for child in children(pid)))


@pytest.mark.parametrize("victim", ["launcher", "envoy", "both"])
def test_a_killed_process_leaves_nothing_behind(envoy: LocalService, folder: Path, victim: str) -> None:
    """The kill comes during a call. A killed launcher leaves its folder, and the next launcher removes it."""
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
        code = envoy.process.wait(20)
        wait_until(lambda: not any(map(is_running, processes)))
        one.wait_until_closed()
    assert code == (1 if victim == "envoy" else -signal.SIGKILL)
    if victim == "envoy":
        assert (envoy.log[-1]["event"], envoy.log[-1].get("signal")) == ("envoy.ended", "SIGKILL")
    wait_until(lambda: not accepts(envoy))  # the last thread to end closes the socket
    assert len(folders(folder)) == (victim != "envoy")
    if victim == "launcher":
        with local_service(None, {"wire": "envoy"}, command=COMMAND):
            assert len(folders(folder)) == 1
        assert folders(folder) == []


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT], ids=lambda number: number.name)
def test_a_crash_inside_of_envoy_ends_the_launcher(envoy: LocalService, folder: Path, number: signal.Signals) -> None:
    """The exit code and a log line report the crash."""
    processes = descendants(envoy.process.pid)
    with Connection(envoy.target) as one:
        one.start(call_headers(path("Unary")))
        one.data(1, framed(do="die", signal=int(number)), is_last=True)
        one.wait_until_closed()
    assert envoy.process.wait(30) == 1
    wait_until(lambda: not any(map(is_running, processes)))
    assert (envoy.log[-1]["event"], envoy.log[-1]["signal"]) == ("envoy.ended", number.name)
    assert folders(folder) == []


def test_two_signals_end_it_at_once(envoy: LocalService, folder: Path) -> None:
    """Otherwise a call would keep the process alive for the grace time."""
    processes = descendants(envoy.process.pid)
    with Connection(envoy.target) as one:
        one.data(one.start(call_headers(path("Stream"))), framed(do="wait", name="slow"))
        one.ping()
        envoy.process.terminate()
        wait_until(lambda: any(line["event"] == "server.leaving" for line in envoy.log))
        envoy.process.terminate()
        assert envoy.process.wait(5) == -signal.SIGTERM
        wait_until(lambda: not any(map(is_running, processes)))


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
        assert not any(map(is_running, processes))
        assert not accepts(service)
    assert folders(folder) == []
    assert [path.name for path in folder.iterdir() if not path.name.endswith(".log")] == []
