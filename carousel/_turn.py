"""Guards an object that one thread at a time may use, and only in the process that made it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from carousel._deadline import Deadline
from carousel._home import Home
from carousel.errors import ConcurrentUseError


class Turn:
    """A lock that a call holds, as a context manager. A second thread gets ConcurrentUseError at once.

    Raises FailedPreconditionError in a forked process.
    """

    def __init__(self, name: str) -> None:
        """name: the object's, for errors."""
        self._name = name
        self._home = Home(name)
        self._lock = threading.Lock()
        self._waiting: deque[None] = deque()  # one for each thread in `awaiting`

    def __enter__(self) -> None:
        self._home.check()
        if not self._lock.acquire(blocking=self.is_awaited):  # a cancelling thread holds the lock only briefly
            raise ConcurrentUseError(
                f"another call of this {self._name} has not returned yet: one thread at a time may use it. Use a"
                f" {self._name} per thread, or AsyncClient",
                reason="CONCURRENT_USE",
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def is_here(self) -> bool:
        """See `Home.is_here`."""
        return self._home.is_here

    @property
    def is_awaited(self) -> bool:
        """Whether a thread is in `awaiting`."""
        return bool(self._waiting)

    @contextmanager
    def awaiting(self) -> Iterator[None]:
        """Sets `is_awaited`: the call in progress then ends soon, and a next call waits and does not fail."""
        self._home.check()
        self._waiting.append(None)
        try:
            yield
        finally:
            self._waiting.pop()

    @contextmanager
    def after_others(self, deadline: Deadline) -> Iterator[None]:
        """Waits until the call in progress has returned, then holds the turn. Raises DeadlineExceededError."""
        remaining = deadline.remaining()
        if not self._lock.acquire(timeout=-1 if remaining is None else remaining):
            raise deadline.exceeded()
        try:
            yield
        finally:
            self._lock.release()
