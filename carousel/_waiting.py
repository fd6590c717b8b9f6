"""Waits of blocking callers that a signal ends, such as the one of Ctrl-C.

Python runs a signal's handler in the main thread. If the signal arrives just before this thread begins to wait for a
lock, the handler runs after the wait. So each wait is made of short ones, as gRPC's own are.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from carousel._deadline import Deadline

T = TypeVar("T")

LONGEST_S = 0.1
"""The longest delay of a signal's handler."""


def get(items: queue.SimpleQueue[T], deadline: Deadline) -> T:
    """Returns the next item. Raises DeadlineExceededError."""

    def attempt(timeout_s: float) -> tuple[T] | None:
        try:
            return (items.get(timeout=timeout_s),)
        except queue.Empty:
            return None

    found = _repeated(attempt, deadline)
    if found is None:
        raise deadline.exceeded()
    return found[0]


def acquire(lock: threading.Lock, deadline: Deadline) -> None:
    """Acquires a lock. Raises DeadlineExceededError."""
    if not _repeated(lambda timeout_s: lock.acquire(timeout=timeout_s), deadline):
        raise deadline.exceeded()


def join(thread: threading.Thread, deadline: Deadline) -> None:
    """Waits until a thread has ended or the deadline has passed."""

    def attempt(timeout_s: float) -> bool:
        thread.join(timeout_s)
        return not thread.is_alive()

    _repeated(attempt, deadline)


def _repeated(attempt: Callable[[float], T], deadline: Deadline) -> T:
    """Calls `attempt`, with seconds to wait, until its result is true or the deadline has passed. Returns the last
    result."""
    while True:
        remaining_s = deadline.remaining()
        wait_s = LONGEST_S if remaining_s is None else min(LONGEST_S, remaining_s)
        found = attempt(wait_s)
        if found or wait_s == remaining_s:
            return found
