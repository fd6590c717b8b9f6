"""Starts servers and load generators in separate processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import native_load
from benchmarks.traffic import TRAFFIC, Load
from examples.local_service import local_service
from examples.ports import wait_for_port

Seen = dict[str, float]
PYTHON_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is measured. target: its address; pid: the process whose CPU time is measured."""

    target: str
    pid: int


@contextmanager
def service(models: Path, wire: str, flags: Mapping[str, object] | None = None) -> Iterator[Running]:
    """Starts the service on one of its wires: see `local_service`. Envoy's launcher process uses no CPU time while it
    serves."""
    with local_service(models, {"wire": wire, **(flags or {})}) as one:
        yield Running(one.target, one.pids[-1])


@contextmanager
def server(wire: str, module: str, *arguments: str) -> Iterator[Running]:
    """Starts `python -m benchmarks.servers.MODULE`, which prints its port, on one of the wires."""
    command = (module, *arguments) if wire == "grpcio" else ("on_envoy", module, *arguments)
    with started(*command) as (line, process):
        wait_for_port(int(line), process)
        yield Running(f"127.0.0.1:{int(line)}", process.pid)


@contextmanager
def populated(repository: Path, model: str, num_sessions: int, *flags: str) -> Iterator[tuple[Running, dict[str, int]]]:
    """Starts the service with open sessions. Yields it and its memory: see `benchmarks.servers.populated`."""
    with started("populated", str(repository), model, str(num_sessions), *flags) as (line, process):
        printed: dict[str, int] = json.loads(line)
        yield Running(f"127.0.0.1:{printed['port']}", process.pid), printed


@contextmanager
def started(module: str, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Starts `python -m benchmarks.servers.MODULE`. Yields the first line that it prints, and its process."""
    command = [sys.executable, "-m", f"benchmarks.servers.{module}", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None:
                raise RuntimeError("the process has no standard output")
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{' '.join(command)} ended before it listened")
            yield line, process
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def generate_load(generator: str, at: Running, load: Load) -> Seen:
    """Runs a load generator, the native one if it can be built, else the Python one. Returns its figures.

    They include `per_second` (steps), `cpu_us` (the server's CPU time per step), `steps`, and those of the generator:
    `p50_s`, `p99_s`, `p999_s` and others (see `native/figures.h`, `benchmarks.load`).
    """
    if not native_load.why_not():
        return native_load.replay(at.target, TRAFFIC[generator](load), load, at.pid)
    flags = [part for name, value in asdict(load).items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "benchmarks.load", generator, at.target, "--server-pid", str(at.pid), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PYTHON_TIMEOUT_S + load.seconds)
    if done.returncode:
        raise RuntimeError(f"the load generator failed:\n{done.stderr}")
    seen: Seen = json.loads(done.stdout)
    return seen
