"""Guards an object that one thread, or one event loop, at a time may use, in the process that made it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from carousel._deadline import Deadline
from carousel._home import Home
from carousel.errors import ConcurrentUseError


class Turn:
    """Held during a call, as a context manager. A second thread gets an error at once, and the first goes on.

    FailedPreconditionError in a forked process.
    """

    def __init__(self, name: str) -> None:
        """name: of the object, for errors."""
        self._name = name
        self._home = Home(name)
        self._lock = threading.Lock()
        self._waiting: deque[None] = deque()  # one for each thread in `awaiting`

    def __enter__(self) -> None:
        self._home.check()
        if not self._lock.acquire(blocking=self.is_awaited):  # a thread that waits to cancel has it for a moment
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
        """Meanwhile `is_awaited`, so that the call in progress ends soon, and the next one waits instead of failing."""
        self._home.check()
        self._waiting.append(None)
        try:
            yield
        finally:
            self._waiting.pop()

    @contextmanager
    def after_others(self, deadline: Deadline) -> Iterator[None]:
        """Holds the turn once the call in progress has returned. Raises DeadlineExceededError."""
        remaining = deadline.remaining()
        if not self._lock.acquire(timeout=-1 if remaining is None else remaining):
            raise deadline.exceeded()
        try:
            yield
        finally:
            self._lock.release()


class LoopCheck:
    """Remembers the event loop that an object belongs to."""

    def __init__(self, name: str) -> None:
        """name: of the object, for the error."""
        self._name = name
        self._home = Home(name)
        self._loop = asyncio.get_running_loop()

    @property
    def is_here(self) -> bool:
        """See `Home.is_here`."""
        return self._home.is_here

    def check(self) -> None:
        """Raises ConcurrentUseError in another event loop than the object's, FailedPreconditionError in a forked
        process."""
        self._home.check()
        if asyncio.get_running_loop() is not self._loop:
            raise ConcurrentUseError(
                f"this {self._name} belongs to another event loop: use it in the loop that it was made in, or make an"
                " AsyncClient per event loop",
                reason="CONCURRENT_USE",
            )
