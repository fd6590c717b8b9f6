"""Servers and load generators in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Seen = dict[str, float]


@contextmanager
def server(module: str, *arguments: str) -> Iterator[str]:
    """`python -m benchmarks.servers.MODULE`; gives the address it listens on."""
    with told(module, *arguments) as line:
        yield f"127.0.0.1:{int(line)}"


@contextmanager
def populated(repository: Path, model: str, num_sessions: int, *flags: str) -> Iterator[dict[str, int]]:
    """The service with sessions open already: see `benchmarks.servers.populated`."""
    with told("populated", str(repository), model, str(num_sessions), *flags) as line:
        yield json.loads(line)


@contextmanager
def told(module: str, *arguments: str) -> Iterator[str]:
    """`python -m benchmarks.servers.MODULE`; gives the first line that it prints."""
    command = [sys.executable, "-m", f"benchmarks.servers.{module}", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None:
                raise RuntimeError("no pipe")
            yield process.stdout.readline()
        finally:
            process.terminate()


def load(generator: str, target: str, **options: float | str) -> Seen:
    """What a load generator saw: see `benchmarks.load`."""
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "benchmarks.load", generator, target, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(f"the load generator failed:\n{done.stderr}")
    seen: Seen = json.loads(done.stdout)
    return seen
