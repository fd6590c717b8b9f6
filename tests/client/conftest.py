"""Fixtures of the client's tests: a fake server, in this process or in a child process, and both clients."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from .fake_server import FakeServer
from .shells import AsyncioShell, BlockingShell, Shell


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(params=[BlockingShell, AsyncioShell], ids=["blocking", "asyncio"])
async def shell(request: pytest.FixtureRequest, server: FakeServer) -> AsyncIterator[Shell]:
    shell: Shell = request.param(server.target)
    yield shell
    await shell.close()


@pytest.fixture
def without_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a client try again without delay: delays are reduced at random, here to nothing."""
    monkeypatch.setattr("carousel._backoff.random.uniform", lambda least, most: 0.0)


class ServerProcess(NamedTuple):
    """A fake server in a child process."""

    target: str
    number: int

    def kill(self) -> None:
        """Kills the process, also when it has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.number, signal.SIGKILL)


@pytest.fixture(scope="session")
def _forking() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported what a fake server needs, and becomes one more for each line that it reads."""
    code = """if True:
        import os, signal, sys
        from tests.client.fake_server import FakeServer
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for _ in sys.stdin:
            if not os.fork():
                server = FakeServer()
                print(server.target, os.getpid(), flush=True)
                signal.pause()
    """
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.fixture
def server_process(_forking: subprocess.Popen[str]) -> Iterator[ServerProcess]:
    assert _forking.stdin is not None
    assert _forking.stdout is not None
    print(file=_forking.stdin, flush=True)
    target, number = _forking.stdout.readline().split()
    process = ServerProcess(target, int(number))
    yield process
    process.kill()
