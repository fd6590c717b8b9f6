"""Guards an object that one thread at a time may use."""

from __future__ import annotations

import asyncio
import threading

from carousel.errors import ConcurrentUseError


class Turn:
    """Held during a call, as a context manager. A second thread gets an error at once, and the first goes on."""

    def __init__(self, name: str) -> None:
        """name: of the object, for the error."""
        self._name = name
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise ConcurrentUseError(
                f"another call of this {self._name} has not returned yet: one thread at a time may use it. Use a"
                f" {self._name} per thread, or AsyncClient",
                reason="CONCURRENT_USE",
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class LoopCheck:
    """Remembers the event loop that an object belongs to."""

    def __init__(self, name: str) -> None:
        """name: of the object, for the error."""
        self._name = name
        self._loop = asyncio.get_running_loop()

    def check(self) -> None:
        """Raises ConcurrentUseError in another event loop than the object's."""
        if asyncio.get_running_loop() is not self._loop:
            raise ConcurrentUseError(
                f"this {self._name} belongs to another event loop: use it in the loop that it was made in, or make an"
                " AsyncClient per event loop",
                reason="CONCURRENT_USE",
            )
