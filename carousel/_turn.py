"""Guards an object that one thread at a time may use, and only in the process that made it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from carousel._deadline import Deadline
from carousel._home import Home
from carousel.errors import ConcurrentUseError

_ADVICE = {
    "session": "Use a session per thread, or AsyncClient",
    "generation": "Read it in one thread, which may pass the tokens on, or start a generation per thread",
    "batch": "Call it from one thread: its sessions step together in one call",
    "watch": "Read it in one thread, which may pass the events on, or start a watch per thread",
}
"""What to do instead of using an object in two threads, by the object's name."""


class Turn:
    """A lock that a call holds, as a context manager. A second thread gets ConcurrentUseError at once.

    Raises FailedPreconditionError in a forked process.
    """

    def __init__(self, name: str) -> None:
        """name: the object's, one of `_ADVICE`."""
        self._name = name
        self._home = Home(name)
        self._lock = threading.Lock()
        self._waiting: deque[None] = deque()  # one for each thread in `awaiting`

    def __enter__(self) -> None:
        self._take(Deadline(None))

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
        """Sets `is_awaited`: the call in progress then ends when its request is cancelled, or, while it resumes a lost
        session, after the resume. A next call waits for its turn and does not fail."""
        self._home.check()
        self._waiting.append(None)
        try:
            yield
        finally:
            self._waiting.pop()

    @contextmanager
    def within(self, deadline: Deadline) -> Iterator[None]:
        """Holds the turn, as `with turn` does. Raises DeadlineExceededError when it waited for a cancelling thread."""
        self._take(deadline)
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def after_others(self, deadline: Deadline) -> Iterator[None]:
        """Waits until the call in progress has returned, then holds the turn. Raises DeadlineExceededError."""
        self._wait(deadline)
        try:
            yield
        finally:
            self._lock.release()

    def _take(self, deadline: Deadline) -> None:
        self._home.check()
        is_awaited = self.is_awaited  # read before the attempt: the cancelling thread may be done after it
        if self._lock.acquire(blocking=False):
            return
        if not is_awaited:
            raise ConcurrentUseError(
                f"another call of this {self._name} has not returned yet: one thread at a time may use it."
                f" {_ADVICE[self._name]}",
                reason="CONCURRENT_USE",
            )
        self._wait(deadline)

    def _wait(self, deadline: Deadline) -> None:
        remaining = deadline.remaining()
        if not self._lock.acquire(timeout=-1 if remaining is None else remaining):
            raise deadline.exceeded()
