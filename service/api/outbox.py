"""The responses of one call that wait to be written, and the only place where a call waits for its reader.

Bounded: who fills it looks at `is_full` and waits for `room` before taking more in; generations are bounded by their
window. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

Response = TypeVar("Response")
Item: TypeAlias = tuple[Response, Callable[[], None] | None]
"""A response, and what to call when it has been written."""


class Outbox(Generic[Response]):
    """Responses in order, each as what makes it when its turn comes, with what to call when it has been written.

    limit: responses at which it is full.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[tuple[Callable[[], Response], Callable[[], None] | None]] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._closed = False
        self._is_held = False

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be taken in that will be answered here."""
        return len(self._waiting) >= self._limit

    def put(self, response: Response) -> None:
        """Adds a response; never waits, and takes even what is over the limit."""
        self._waiting.append((lambda: response, None))
        self._wake_up()

    def put_later(self, make: Callable[[], Response], on_written: Callable[[], None]) -> None:
        """Adds a response that is made when its turn comes."""
        self._waiting.append((make, on_written))
        self._wake_up()

    def close(self) -> None:
        """Nothing more will be put: `next` gives None once all is taken."""
        self._closed = True
        self._wake_up()

    async def next(self) -> Item[Response] | None:
        """The oldest response; None when there will be no more. One task at a time."""
        while not self._waiting:
            if self._closed:
                return None
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        return self._take()

    async def room(self) -> None:
        """Waits until it is full no longer. One task at a time."""
        while self.is_full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def hold(self) -> bool:
        """Keeps the task that waits in `next`, if one does, asleep until `let_go`: who holds writes in its place."""
        self._is_held = self._arrival is not None and not self._arrival.done() and not self._waiting
        return self._is_held

    def take(self) -> Item[Response] | None:
        """The oldest response, for who holds; None when there is none."""
        return self._take() if self._waiting else None

    def let_go(self) -> None:
        """Ends `hold`: the task that waits in `next` goes on if there is anything for it."""
        self._is_held = False
        if self._waiting or self._closed:
            self._wake_up()

    def _take(self) -> Item[Response]:
        make, on_written = self._waiting.popleft()
        if self._room is not None and not self._room.done() and not self.is_full:
            self._room.set_result(None)
        return make(), on_written

    def _wake_up(self) -> None:
        if self._is_held:
            return
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
