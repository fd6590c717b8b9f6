"""Fixtures of the client's tests: a fake server, in this process or in a child process, and both clients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

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
def server_process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A fake server in a child process, and its address."""
    code = """if True:
        from tests.client.fake_server import FakeServer
        server = FakeServer()
        print(server.target, flush=True)
        input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()
