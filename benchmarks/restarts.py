"""Measures a server that may crash: restarts it, repeats the measurement and counts the failures."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from benchmarks.processes import Running, Seen

MAX_FAILURES = 5
"""After this many failed runs in a row, the measurement fails."""
_END_S = 3.0
"""How long to wait for the end of a process that crashes."""


@dataclass(frozen=True, slots=True)
class Started:
    """A running server. target: its address."""

    target: str
    process: subprocess.Popen[bytes]


class Restarted:
    """Runs measurements of a server. Repeats each until the server does not fail during it."""

    def __init__(self, name: str, start: Callable[[], AbstractContextManager[Started]]) -> None:
        self._name = name
        self._start = start
        self._stack = ExitStack()
        self._started: Started | None = None
        self.num_runs = 0
        self.failures: Counter[str] = Counter()
        """How often each kind of failure ended a run."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop()

    def seen(self, measure: Callable[[Running], Seen]) -> Seen:
        """Returns the figures of the first run that did not fail. Raises RuntimeError after MAX_FAILURES failed
        runs."""
        for _ in range(MAX_FAILURES):
            started = self._running()
            self.num_runs += 1
            try:
                return measure(Running(started.target, started.process.pid))
            except RuntimeError as error:
                last = error
                self.failures[_failure(started.process)] += 1
                self._stop()
        raise RuntimeError(f"{self._name} failed in {MAX_FAILURES} runs in a row; the last error: {last}") from last

    def summary(self) -> str:
        """Returns a text that says how many runs failed, and how."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.failures.most_common())
        return f"{self._name} failed in {self.failures.total()} of {self.num_runs} runs{f': {kinds}' * bool(kinds)}"

    def _running(self) -> Started:
        if self._started is None:
            self._started = self._stack.enter_context(self._start())
        return self._started

    def _stop(self) -> None:
        self._started = None
        self._stack.close()


def _failure(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(_END_S)
    except subprocess.TimeoutExpired:
        return "no answer"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
