"""Runs a version's graphs once in their own process, so that a graph that takes all memory or time ends that process
and not the server.

The process loads and runs the graphs as a server's start does, at every batch size, and the trace graph as well. But it
turns off ONNX Runtime's memory arena, so that the measured memory is what the graphs need.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from service.engine.core import EngineCore
from service.engine.jobs import Items
from service.engine.limits import EngineLimits
from service.engine.trace_graph import TraceGraph
from service.observer import BatchReport, GraphKind
from service.repository.bundle import Bundle
from service.repository.repository import Problem, load_version
from service.repository.runtime import RuntimeOptions, Runtimes

_LOOK_S = 0.01
"""Seconds between two measurements of the process's memory."""
_MIB = 1024 * 1024
_NICENESS = 10
"""Niceness of the process: the server's work for its sessions has priority."""
_GROUP = Path("/sys/fs/cgroup")
"""The control groups (version 2), as a container sees its own."""
_KEPT = 0.05
"""Fraction of a container's memory that is left to its other processes."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """Limits for a trial's process. memory_mib: resident memory in MiB, with the interpreter's."""

    memory_mib: int
    time_s: float


def try_version(
    folder: Path,
    key: tuple[str, int],
    runtime: RuntimeOptions,
    limits: EngineLimits,
    trial: TrialLimits,
    *,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Problem | None:
    """Loads a version from a folder of models and runs its graphs.

    limits: of the engines that a server would make; is_wanted: called repeatedly; the trial is stopped when it returns
    False. Returns None when the version can be served, else the reason. Blocks for at most `trial.time_s`. Memory is
    measured on Linux only. Thread-safe.
    """
    request = {"folder": str(folder.resolve()), "key": key, "runtime": runtime.model_dump(), "limits": asdict(limits)}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    try:
        started = subprocess.Popen(  # noqa: S603  # this interpreter runs this file
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
    except OSError as error:
        return Problem(*key, f"the trial run of its graphs cannot be started: {error.strerror}")
    with started as process:
        assert process.stdin is not None  # noqa: S101  # because of PIPE
        assert process.stdout is not None  # noqa: S101  # because of PIPE
        with suppress(BrokenPipeError):  # it has ended already; its exit code says why
            process.stdin.write(json.dumps(request).encode())
            process.stdin.close()
        reason = _watch(process, trial, is_wanted)
        if reason is None and process.returncode == -signal.SIGKILL:
            reason = "the trial run of its graphs was killed, perhaps because memory ran out"
        if reason is None:
            try:
                reason = json.loads(process.stdout.read())
            except ValueError:
                reason = f"the trial run of its graphs ended with exit code {process.returncode}"
    return None if not reason else Problem(*key, reason)


def _watch(process: subprocess.Popen[bytes], trial: TrialLimits, is_wanted: Callable[[], bool]) -> str | None:
    """Waits for a process. Kills it when it exceeds a limit or is no longer wanted, and returns why; None when it
    ended by itself."""
    deadline = time.monotonic() + trial.time_s
    most, limit = trial.memory_mib * _MIB, f"{trial.memory_mib} MiB of memory (check_memory_mib)"
    room = _room_bytes()
    if room is not None and room < most:
        most, limit = room, f"{room // _MIB} MiB of memory, all that the container has left"
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_S)
            return None
        reason = "the trial run of its graphs was stopped: the server is shutting down"
        if _resident_bytes(process.pid) > most:
            reason = f"its graphs need more than {limit}"
        elif time.monotonic() > deadline:
            reason = f"its graphs were not loaded and run once within {trial.time_s:g} s (check_time_s)"
        elif is_wanted():
            continue
        process.kill()
        process.wait()
        return reason


def _resident_bytes(pid: int) -> int:
    """Returns the resident memory of a process in bytes; 0 where it cannot be read."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _room_bytes() -> int | None:
    """Returns how many bytes of its memory limit the container has left, without counting file caches. None without a
    limit, or where it cannot be read."""
    try:
        limit = int((_GROUP / "memory.max").read_text())
        lines = (_GROUP / "memory.stat").read_text().splitlines()
        used = next(int(line.split()[1]) for line in lines if line.startswith("anon "))
    except (OSError, ValueError, StopIteration):  # the limit can be the word `max`
        return None
    return max(0, int(limit * (1 - _KEPT)) - used)


class _WithoutArena(RuntimeOptions):
    """Runtime options of a trial, without the memory arena."""

    def session_options(self) -> ort.SessionOptions:
        """See `RuntimeOptions`."""
        options = super().session_options()
        options.enable_cpu_mem_arena = False
        return options


class _Unobserved:
    """An `EngineObserver` that does nothing."""

    is_tracing = False

    def batch_traced(self, tags: Sequence[Any], report: BatchReport) -> None:
        """Does nothing."""

    def batch_ran(self, report: BatchReport) -> None:
        """Does nothing."""

    def batch_failed(self, kind: GraphKind, num_rows: int, error: BaseException) -> None:
        """Does nothing."""


def _reason_why_not(request: dict[str, Any]) -> str:
    """Returns why a version cannot be served; empty when it can."""
    model, version = request["key"]
    runtimes = Runtimes(_WithoutArena.model_validate(request["runtime"]))
    found = load_version(Path(request["folder"]), (model, version), runtimes)
    if isinstance(found, Problem):
        return found.reason
    try:
        for variant in found.variants:
            core = EngineCore(found, variant, EngineLimits(**request["limits"]), _Unobserved(), _ignore)
            core.warm_up()
            _run_trace_graph(found, core)
    except Exception as error:  # from ONNX Runtime, or out of memory
        return f"its engine cannot start: {str(error)[:2000] or type(error).__name__}"
    return ""


def _run_trace_graph(bundle: Bundle, core: EngineCore) -> None:
    """Runs the trace graph on row 0, which no session uses."""
    if bundle.trace is not None:
        rows = np.zeros(1, dtype=np.int64)
        tokens = Items(bundle.manifest.step.feature_size).blank(1, 1) + 1
        graph = TraceGraph(bundle.manifest, bundle.trace)
        states, contexts = core.arena.gather(rows), core.arena.gather_context(rows)
        graph.run(tokens, np.ones(1, dtype=np.int64), states, contexts, core.arena.source_lengths([0]))


def _ignore(error: Exception) -> None:
    """Ignores the error: a trial has no jobs that can fail."""


def _lower_priority() -> None:
    """Lets the system end this process before the server when memory is short, and gives it the processor after the
    server."""
    os.nice(_NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    _lower_priority()
    print(json.dumps(_reason_why_not(json.load(sys.stdin))))
