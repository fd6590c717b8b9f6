"""Guards an object that one thread at a time may use, and only in the process that made it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from carousel import _waiting
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
        self._cancelling = threading.Lock()  # held by the thread in `cancelling`
        self._num_cancels = 0

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
        """Whether a thread is in `cancelling`."""
        return self._cancelling.locked()

    @contextmanager
    def cancelling(self, deadline: Deadline) -> Iterator[None]:
        """Sets `is_awaited`: the call in progress then ends when its request is cancelled, or, while it resumes a lost
        session, after the resume. A next call waits until this block has ended, and does not fail: so the cancelling
        thread has its turn first, and no call can close the session before.

        Another cancelling thread waits until this one is done. Raises DeadlineExceededError.
        """
        self._home.check()
        _waiting.acquire(self._cancelling, deadline)
        self._num_cancels += 1
        try:
            yield
        finally:
            self._cancelling.release()

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
        _waiting.acquire(self._lock, deadline)
        try:
            yield
        finally:
            self._lock.release()

    def _take(self, deadline: Deadline) -> None:
        self._home.check()
        num_cancels = self._num_cancels
        if not self._cancelling.locked():
            if self._lock.acquire(blocking=False):
                return
            if self._num_cancels == num_cancels:  # else a cancelling thread may have the lock
                raise ConcurrentUseError(
                    f"another call of this {self._name} has not returned yet: one thread at a time may use it."
                    f" {_ADVICE[self._name]}",
                    reason="CONCURRENT_USE",
                )
        _waiting.acquire(self._cancelling, deadline)
        self._cancelling.release()
        _waiting.acquire(self._lock, deadline)
