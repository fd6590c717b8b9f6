"""How long a call may still wait."""

from __future__ import annotations

import time

from carousel import _arguments
from carousel.errors import DeadlineExceededError

_CLOSE_TIMEOUT_S = 5.0


class Deadline:
    """A moment, `timeout` seconds from now; without a timeout, never.

    passed_by: the error that `exceeded` made last.
    """

    def __init__(self, timeout: float | None) -> None:
        self.passed_by: DeadlineExceededError | None = None
        self._timeout = _arguments.timeout(timeout)
        self._at = None if self._timeout is None else time.monotonic() + self._timeout

    def remaining(self) -> float | None:
        """Seconds left, 0 or more; None when there is no end."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def sooner(self, timeout: float) -> Deadline:
        """The earlier of this deadline and one that is `timeout` seconds from now."""
        remaining = self.remaining()
        return Deadline(timeout if remaining is None else min(timeout, remaining))

    def exceeded(self) -> DeadlineExceededError:
        """The error to raise when it has passed."""
        self.passed_by = DeadlineExceededError(f"no answer within {self._timeout:g} s", reason="DEADLINE_EXCEEDED")
        return self.passed_by


def closing_deadline(timeout: float | None) -> Deadline:
    """How long closing a session waits for a server that does not answer: 5 s when no timeout was set."""
    return Deadline(_CLOSE_TIMEOUT_S if timeout is None else timeout)
