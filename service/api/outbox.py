"""The responses of one call that wait to be written, and the only place where a call waits for its reader.

Bounded: who fills it looks at `is_full` and waits for `room` before taking more in; generations are bounded by their
window. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

Response = TypeVar("Response")
Made: TypeAlias = Response | Coroutine[Any, Any, Response]
"""A response, or a coroutine that makes it: a large one is made in slices, see `answers`."""
OutboxEntry: TypeAlias = tuple[Made[Response], Callable[[], None] | None]
"""A response, and the function to call when it was written. One that is yet to be made always has the function."""


class _Later(NamedTuple):
    """A response that is made when its turn comes."""

    make: Callable[[], object]
    on_written: Callable[[], None]


class Outbox(Generic[Response]):
    """Responses in order. limit: the number at which it is full. waiting: those to be written; is_closed: whether
    nothing more will be put. at_once: writes one without waiting, and returns whether it did; None: nothing does."""

    def __init__(self, limit: int, at_once: Callable[[Response], bool] | None = None) -> None:
        self.waiting: deque[Response | _Later] = deque()
        self.is_closed = False
        self.limit = limit
        self._at_once = at_once
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._is_held = False

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be taken in that will be answered here."""
        return len(self.waiting) >= self.limit

    @property
    def is_at_once(self) -> bool:
        """Whether the next response is written where it is put: what came before it has left, and the wire can."""
        return self._at_once is not None and self._arrival is not None and not self.waiting

    def put_at_once(self, response: Response) -> bool:
        """Writes a response now, if `is_at_once`. Returns whether the wire took it."""
        return self._at_once is not None and self._at_once(response)

    def put(self, response: Response) -> None:
        """Adds a response; never waits, and takes even one that is over the limit."""
        if self.is_at_once and self.put_at_once(response):
            return
        self.waiting.append(response)
        if self._arrival is not None and not self._is_held:
            self._wake_up()

    def put_later(self, make: Callable[[], Made[Response]], on_written: Callable[[], None]) -> None:
        """Adds a response that is made when its turn comes."""
        self.waiting.append(_Later(make, on_written))
        if self._arrival is not None and not self._is_held:
            self._wake_up()

    def abandon(self) -> None:
        """Nobody will take anything any more: drops what is there, and whatever is put from here on."""
        self._at_once = None
        self.waiting = deque(maxlen=0)

    def close(self) -> None:
        """Nothing more will be put: `next` gives None once all is taken."""
        self.is_closed = True
        if not self._is_held:
            self._wake_up()

    def arrival(self) -> asyncio.Future[None]:
        """A future that is done when something is put, or the outbox is closed. One task at a time."""
        self._arrival = asyncio.get_running_loop().create_future()
        return self._arrival

    async def next(self) -> tuple[Response, Callable[[], None] | None] | None:
        """The oldest response, made; None when there will be no more. One task at a time."""
        while not self.waiting:
            if self.is_closed:
                return None
            await self.arrival()
        response, on_written = self.take()
        made: Response = await response if isinstance(response, CoroutineType) else response  # type: ignore[assignment]
        return made, on_written

    async def room(self) -> None:
        """Waits until it is full no longer. One task at a time."""
        while self.is_full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def hold(self) -> bool:
        """Keeps the task that waits for an arrival, if one does, asleep until `let_go`: who holds writes in its
        place."""
        self._is_held = self._arrival is not None and not self.waiting
        return self._is_held

    def let_go(self) -> None:
        """Ends `hold`: the task that waits for an arrival continues if there is anything for it."""
        self._is_held = False
        if self.waiting or self.is_closed:
            self._wake_up()

    def take(self) -> OutboxEntry[Response]:
        """The oldest response. Raises IndexError when there is none."""
        entry = self.waiting.popleft()
        if self._room is not None and not self._room.done() and not self.is_full:
            self._room.set_result(None)
        if isinstance(entry, _Later):
            return entry.make(), entry.on_written  # type: ignore[return-value]  # `put_later` has looked
        return entry, None

    def _wake_up(self) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None and not arrival.done():
            arrival.set_result(None)
