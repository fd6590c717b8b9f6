"""Measures how long a call may still wait."""

from __future__ import annotations

import time

from carousel import _arguments
from carousel.errors import DeadlineExceededError

_CLOSE_TIMEOUT_S = 5.0


class Deadline:
    """A time limit `timeout` seconds from now; no limit without a timeout.

    passed_by: the last error that `exceeded` made.
    """

    def __init__(self, timeout: float | None) -> None:
        self.passed_by: DeadlineExceededError | None = None
        self._timeout = _arguments.timeout(timeout)
        self._at = None if self._timeout is None else time.monotonic() + self._timeout

    def remaining(self) -> float | None:
        """Seconds left, 0 or more; None without a limit."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def sooner(self, timeout: float) -> Deadline:
        """Returns the earlier of this deadline and one that is `timeout` seconds from now."""
        remaining = self.remaining()
        return Deadline(timeout if remaining is None else min(timeout, remaining))

    def exceeded(self) -> DeadlineExceededError:
        """Makes the error to raise when the deadline has passed."""
        self.passed_by = DeadlineExceededError(f"no answer within {self._timeout:g} s", reason="DEADLINE_EXCEEDED")
        return self.passed_by


def closing_deadline(timeout: float | None) -> Deadline:
    """Returns the deadline for closing when the server does not answer: 5 s when no timeout was set."""
    return Deadline(_CLOSE_TIMEOUT_S if timeout is None else timeout)
