"""The responses of one call that wait to be written. A call waits for its reader here and nowhere else.

The outbox is bounded by its producer, which checks `is_full` and awaits `room` before it accepts more work. Generations
are bounded by their window. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

Response = TypeVar("Response")
Made: TypeAlias = Response | Coroutine[Any, Any, Response]
"""A response, or a coroutine that makes it. Large responses are made in slices: see `answers`."""
OutboxEntry: TypeAlias = tuple[Made[Response], Callable[[], None] | None]
"""A response, and the function to call after it was written. Responses that are made later always have the function."""


class _Later(NamedTuple):
    """A response that is made when its turn comes."""

    make: Callable[[], object]
    on_written: Callable[[], None]


class Outbox(Generic[Response]):
    """A queue of responses.

    limit: the number of responses at which it is full. waiting: the responses that are not written yet; is_closed:
    whether no more will be put. at_once: writes a response without waiting and returns whether it did; None if the wire
    cannot do so.
    """

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
        """Whether no more work should be accepted that is answered here."""
        return len(self.waiting) >= self.limit

    @property
    def is_at_once(self) -> bool:
        """Whether the next response is written where it is put: the wire can do so, the writer is idle and nothing
        waits."""
        return self._at_once is not None and self._arrival is not None and not self.waiting

    def put_at_once(self, response: Response) -> bool:
        """Writes a response now. Call it only if `is_at_once`. Returns whether the wire accepted it."""
        return self._at_once is not None and self._at_once(response)

    def put(self, response: Response) -> None:
        """Adds a response. Never waits, and accepts responses over the limit."""
        if self.is_at_once and self.put_at_once(response):
            return
        self.waiting.append(response)
        if self._arrival is not None and not self._is_held:
            self._wake_up()

    def put_later(self, make: Callable[[], Made[Response]], on_written: Callable[[], None]) -> None:
        """Adds a response that is made when its turn comes. on_written: called after it was written."""
        self.waiting.append(_Later(make, on_written))
        if self._arrival is not None and not self._is_held:
            self._wake_up()

    def abandon(self) -> None:
        """Drops the responses that wait, and all that are put later, because nothing is written any more."""
        self._at_once = None
        self.waiting = deque(maxlen=0)

    def close(self) -> None:
        """Records that no more responses will be put. `next` returns None when all are taken."""
        self.is_closed = True
        if not self._is_held:
            self._wake_up()

    def arrival(self) -> asyncio.Future[None]:
        """Returns a future that is done when a response is put or the outbox is closed. Only one task may wait at a
        time."""
        self._arrival = asyncio.get_running_loop().create_future()
        return self._arrival

    async def next(self) -> tuple[Response, Callable[[], None] | None] | None:
        """Returns the oldest response, made; None after the last one. Only one task may wait at a time."""
        while not self.waiting:
            if self.is_closed:
                return None
            await self.arrival()
        response, on_written = self.take()
        made: Response = await response if isinstance(response, CoroutineType) else response  # type: ignore[assignment]
        return made, on_written

    async def room(self) -> None:
        """Waits until the outbox is not full. Only one task may wait at a time."""
        while self.is_full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def hold(self) -> bool:
        """Keeps the writer task suspended until `end_hold`. Returns whether a task is waiting: the caller then writes
        in its place."""
        self._is_held = self._arrival is not None and not self.waiting
        return self._is_held

    def end_hold(self) -> None:
        """Ends `hold`. The writer task continues if responses wait or the outbox is closed."""
        self._is_held = False
        if self.waiting or self.is_closed:
            self._wake_up()

    def take(self) -> OutboxEntry[Response]:
        """Removes and returns the oldest response. Raises IndexError if there is none."""
        entry = self.waiting.popleft()
        if self._room is not None and not self._room.done() and not self.is_full:
            self._room.set_result(None)
        if isinstance(entry, _Later):
            return entry.make(), entry.on_written  # type: ignore[return-value]  # `put_later` has checked the type
        return entry, None

    def _wake_up(self) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None and not arrival.done():
            arrival.set_result(None)
