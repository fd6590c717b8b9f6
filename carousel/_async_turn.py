"""Guards objects for asyncio against use in a forked process or another event loop. `_turn` guards blocking ones."""

from __future__ import annotations

import asyncio

from carousel._home import Home
from carousel.errors import ConcurrentUseError


class AsyncTurn:
    """A context manager that raises FailedPreconditionError in a forked process.

    It has the place of `Turn` in the code that both clients share, and no lock: it lets concurrent tasks through.
    """

    def __init__(self, name: str) -> None:
        """name: the object's, for errors."""
        self._home = Home(name)

    def __enter__(self) -> None:
        self._home.check()

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def is_here(self) -> bool:
        """See `Home.is_here`."""
        return self._home.is_here


class LoopCheck:
    """Remembers the event loop that an object belongs to."""

    def __init__(self, name: str) -> None:
        """name: the object's, for the error."""
        self._name = name
        self._home = Home(name)
        self._loop = asyncio.get_running_loop()

    @property
    def is_here(self) -> bool:
        """See `Home.is_here`."""
        return self._home.is_here

    def check(self) -> None:
        """Raises ConcurrentUseError in another event loop, and FailedPreconditionError in a forked process."""
        self._home.check()
        if asyncio.get_running_loop() is not self._loop:
            raise ConcurrentUseError(
                f"this {self._name} belongs to another event loop: use it in the loop that it was made in, or make an"
                " AsyncClient per event loop",
                reason="CONCURRENT_USE",
            )
