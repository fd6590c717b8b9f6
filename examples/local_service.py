"""Runs a service in a child process, for the duration of a `with` block: for demos, tests and experiments."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from examples.ports import free_port
from examples.processes import children, is_running

_COMMAND = (sys.executable, "-m", "service")


class Process(Protocol):
    """A started process: the methods of `subprocess.Popen` that are needed here."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """Returns the exit code, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code. Raises subprocess.TimeoutExpired after `timeout` seconds."""

    def send_signal(self, sig: int) -> None:
        """Sends a signal."""

    def terminate(self) -> None:
        """Sends SIGTERM."""

    def kill(self) -> None:
        """Sends SIGKILL."""


def _started(command: Sequence[str], stderr: IO[bytes]) -> Process:
    return subprocess.Popen(command, stderr=stderr)


@dataclass(frozen=True, slots=True)
class LocalService:
    """A running service. target: its address for clients. metrics_url: for Prometheus."""

    target: str
    metrics_url: str
    process: Process
    log_file: IO[bytes]

    @property
    def log(self) -> list[dict[str, object]]:
        """Every log line so far, oldest first."""
        return _read_log(Path(self.log_file.name))

    def stop(self, timeout_s: float = 30.0) -> int:
        """Sends SIGTERM and returns the exit code. Raises subprocess.TimeoutExpired."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    @property
    def pids(self) -> list[int]:
        """The ids of its processes: the one that was started, and, on the wire `envoy`, Envoy's."""
        return [self.process.pid, *children(self.process.pid)]

    def kill(self) -> None:
        """Kills the process that was started. Returns when all its processes have ended."""
        pids = self.pids
        self.process.kill()
        self.process.wait()
        while any(map(is_running, pids)):  # Envoy ends a moment later
            time.sleep(0.005)


@contextmanager
def local_service(
    models: Path | None,
    flags: Mapping[str, object] | None = None,
    *,
    command: Sequence[str] = _COMMAND,
    start: Callable[[Sequence[str], IO[bytes]], Process] = _started,
) -> Iterator[LocalService]:
    """Starts `python -m service`, or another `command`, on free ports of the loopback interface; stops it at the end.

    models: the folder; None for the models that come with the server. flags: by name without leading dashes, such as
    `{"max-sessions": 4}`; True and False turn a switch on and off. start: starts a command with this file as its
    standard error. By default nothing is stored outside the process.
    The service counts as started when it logs so or, if its `log-level` drops that line, when it answers a health
    check. Raises RuntimeError with the log if it does not start.
    """
    served: dict[str, object] = {"example": True} if models is None else {"models": models}
    usual = {"port": 0, "metrics-port": 0, "log-format": "json", "log-level": "info", "store": "memory"}
    given = {**served, **usual, **(flags or {})}
    logs_starts = given["log-level"] in ("debug", "info")
    if not logs_starts:
        given |= _known_ports(given)
    arguments = [part for name, value in given.items() for part in _flag(name, value)]
    with tempfile.NamedTemporaryFile(suffix=".log") as log_file:
        process = start([*command, *arguments], log_file)
        try:
            port, metrics_port = _wait_until_started(process, Path(log_file.name), None if logs_starts else given)
            metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
            yield LocalService(f"127.0.0.1:{port}", metrics_url, process, log_file)
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(30.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _flag(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


def _known_ports(given: Mapping[str, object]) -> dict[str, object]:
    """Chooses free ports, when no log line will report them; with TLS also one for health checks."""
    asked = {name: given.get(name) for name in ("port", "metrics-port", "health-port")}
    if "tls-cert-file" in given and asked["health-port"] is None:
        asked["health-port"] = 0
    return {name: free_port() for name, port in asked.items() if port == 0}


def _wait_until_started(process: Process, log: Path, given: Mapping[str, object] | None) -> tuple[object, object]:
    """Returns its port and its metrics port. given: the flags, if the log does not report the start."""
    for _ in range(1200):
        if given is None:
            for line in _read_log(log):
                if line.get("event") == "server.started":
                    return line["port"], line["metrics_port"]
        elif _tells_health(given.get("health-port", given["port"])):
            return given["port"], given["metrics-port"]
        try:
            code = process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        raise RuntimeError(f"the service ended with code {code}:\n{log.read_text()}")
    raise RuntimeError(f"the service did not start within a minute:\n{log.read_text()}")


def _tells_health(port: object) -> bool:
    """Whether it answers health checks, even if it has no model to serve."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
        except grpc.RpcError:
            return False
    return True


def _read_log(path: Path) -> list[dict[str, object]]:
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
