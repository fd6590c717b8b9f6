"""Servers, a store and a proxy that a benchmark can kill, pause, restart and disconnect."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from examples.local_envoy import local_envoy
from examples.local_service import LocalService, local_service
from examples.ports import free_port, wait_for_port


class Replica:
    """A server on a fixed port, which can be killed and started again there."""

    def __init__(self, models: Path, flags: Mapping[str, object]) -> None:
        self.port = free_port()
        self._models = models
        self._flags = {"port": self.port, **flags}
        self._stack = ExitStack()
        self._service: LocalService | None = None

    def start(self) -> None:
        """Starts the server. Blocks until it listens."""
        self._service = self._stack.enter_context(local_service(self._models, self._flags))

    def kill(self) -> None:
        """Kills the server with SIGKILL, so that it cannot react."""
        if self._service is not None:
            self._service.kill()
            self.end()

    def pause(self, seconds: float) -> None:
        """Stops all processes of the server for `seconds` with SIGSTOP, as happens on a machine that is short of memory
        or migrated."""
        if self._service is not None:
            pids = self._service.pids
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(seconds)
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)

    def leave(self) -> None:
        """Stops the server with SIGTERM, as a rolling restart does."""
        if self._service is not None:
            self._service.stop()
            self.end()

    def end(self) -> None:
        """Waits for the server's end."""
        self._service = None
        self._stack.close()


class Redis:
    """A `redis-server` that stores all data on disk."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts Redis. Blocks until it listens. Raises FileNotFoundError when `redis-server` is not installed."""
        program = shutil.which("redis-server")
        if program is None:
            raise FileNotFoundError("redis-server is not installed")
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for_port(self.port, self._process)

    def stop(self) -> None:
        """Stops Redis with SIGTERM, so that it first writes all data."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


class Envoy:
    """An Envoy in front of replicas, with the deployed configuration."""

    def __init__(self, ports: list[int], folder: Path) -> None:
        self._stack = ExitStack()
        envoy = self._stack.enter_context(local_envoy(ports, folder))
        self.port = int(envoy.target.rpartition(":")[2])

    def stop(self) -> None:
        """Stops Envoy."""
        self._stack.close()


class Proxy:
    """Forwards connections to a port, and can break all of them. is_blocked: whether it refuses new connections.
    is_mute: whether it drops what the server sends."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.is_blocked = self.is_mute = False
        self._to = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening and breaks every connection."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> None:
        """Breaks every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def block(self, seconds: float) -> None:
        """Breaks every connection, and refuses new ones for `seconds`."""
        self.is_blocked = True
        self.cut()
        await asyncio.sleep(seconds)
        self.is_blocked = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.is_blocked:
                raise ConnectionRefusedError
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, there_writer}
        self._writers |= pair
        try:
            ways = (
                asyncio.ensure_future(_pass(reader, there_writer)),
                asyncio.ensure_future(_pass(there_reader, writer, lambda: self.is_mute)),
            )
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        finally:
            self._writers -= pair
            for one in pair:
                one.transport.abort()


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_dropped: Callable[[], bool] = lambda: False
) -> None:
    try:
        while data := await reader.read(65_536):
            if is_dropped():
                continue
            writer.write(data)
            await writer.drain()
    except OSError:
        return
