"""Starts our server, and real services of others (Redis, Prometheus, Alertmanager), on free ports of the loopback
interface.

If a program is not installed, the test is skipped; with TESTS_REQUIRE_SERVICES=1 it fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from examples.local_service import local_service as service_process
from examples.ports import free_port, wait_for_port
from tests import fork_server

local_service = partial(service_process, start=fork_server.start)
"""Runs a service in a child process: see `examples.local_service`. It starts sooner than there."""


def program(name: str) -> str:
    """Returns the path of a program. Skips or fails the test if it is not installed."""
    found = shutil.which(name)
    if found is None:
        message = f"{name} is not on this machine"
        if os.environ.get("TESTS_REQUIRE_SERVICES") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return found


class RedisServer:
    """A `redis-server` that syncs each write to disk, so that its data survive `stop` and `start`."""

    def __init__(self, folder: Path) -> None:
        self._program, self._folder = program("redis-server"), folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it listens."""
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for_port(self.port, self._process)

    def stop(self) -> None:
        """Kills the server."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """Runs a Redis server."""
    server = RedisServer(folder)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def prometheus_server(folder: Path, config: str, *flags: str, port: int | None = None) -> Iterator[str]:
    """Runs a Prometheus with this configuration. Gives its URL."""
    path, port = folder / "prometheus.yml", port or free_port()
    path.write_text(config)
    command = [program("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    process = subprocess.Popen([*command, *flags])
    try:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def alertmanager_server(folder: Path, config: str) -> Iterator[str]:
    """Runs an Alertmanager with this configuration. Gives its URL."""
    path, port = folder / "alertmanager.yml", free_port()
    path.write_text(config)
    command = [program("prometheus-alertmanager"), f"--config.file={path}", f"--storage.path={folder / 'alerts'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=", "--log.level=warn"]
    process = subprocess.Popen(command)
    try:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
