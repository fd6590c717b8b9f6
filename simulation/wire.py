"""One call's simulated connection, which replaces gRPC's: the `context` that the service's servicers use.

Requests arrive in order, each after a delay. A response is copied, as a transport does, and delivered to the client
after a delay. `write` waits while the client has too many unread responses. Either side may end the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message

_WINDOW = 4
"""Unread responses of a client that does not read, above which `write` waits."""


_TICK_S = 1e-6
"""Seconds between two messages, because timers at the same time have no order."""


class CallEnded(Exception):  # grpc calls this an abort
    """The servicer ended the call with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code


class Connection:
    """The methods of a `ServicerContext` that servicers use. receive: called with each response that reaches the
    client; written: called with each response when the servicer writes it; delay: draws the seconds that a message is
    on its way."""

    def __init__(
        self,
        receive: Callable[[Any], None],
        delay: Callable[[], float],
        written: Callable[[Any], None] = lambda response: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # the client's: its reaction to a response is not the server's work
        self._receive = receive
        self._written = written
        self._delay = delay
        self._requests: deque[Any] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._unread: deque[Any] = deque()
        self._arrives_at_s = self._reaches_at_s = 0.0
        self.is_reading = True
        self.has_left = False

    # The client's side.

    def send(self, request: Any) -> None:
        """Sends a request, or grpc.aio.EOF to half-close."""
        self._arrives_at_s = max(self._loop.time() + self._delay(), self._arrives_at_s + _TICK_S)
        self._loop.call_at(self._arrives_at_s, self._arrive, request)

    def leave(self) -> None:
        """Disconnects the client, which receives nothing more."""
        self.has_left = True
        self._arrive(grpc.aio.EOF)
        self._make_room()

    def set_reading(self, is_reading: bool) -> None:
        """Stops reading, or reads all unread responses and continues."""
        self.is_reading = is_reading
        while self.is_reading and self._unread:
            self._receive(self._unread.popleft())
        self._make_room()

    # The servicer's side.

    def peer(self) -> str:
        """See `ServicerContext`."""
        return "simulated"

    def code(self) -> None:
        """See `ServicerContext`."""

    def invocation_metadata(self) -> tuple[()]:
        """See `ServicerContext`."""
        return ()

    def finish(self, word: Any) -> None:
        """Ends the call: the client receives `word` after all earlier responses."""
        self._reaches_at_s = max(self._loop.time() + self._delay(), self._reaches_at_s + _TICK_S)
        self._loop.call_at(self._reaches_at_s, self._reach, word, context=self._context)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """See `ServicerContext`."""
        raise CallEnded(code, details)

    def reset(self) -> None:
        """See `Wire.reset`."""
        self._unread.clear()

    async def read(self) -> Any:
        """Returns the next request; grpc.aio.EOF when there are no more."""
        while not self._requests:
            self._arrival = self._loop.create_future()
            await self._arrival
        if self._requests[0] is grpc.aio.EOF:
            return grpc.aio.EOF
        return self._requests.popleft()

    async def write(self, response: Message) -> None:
        """Writes a response. Raises grpc.aio.InternalError when the client has disconnected."""
        while len(self._unread) >= _WINDOW and not self.has_left:
            self._room = self._loop.create_future()
            await self._room
        if self.has_left:
            raise grpc.aio.InternalError("the client has left")
        self._hand_over(response)
        pause_s = self._delay()
        if pause_s:
            await asyncio.sleep(pause_s)

    def _hand_over(self, response: Message) -> None:
        copy = type(response).FromString(response.SerializeToString())
        self._written(copy)
        self._reaches_at_s = max(self._loop.time() + self._delay(), self._reaches_at_s + _TICK_S)
        self._loop.call_at(self._reaches_at_s, self._reach, copy, context=self._context)

    def _arrive(self, request: Any) -> None:
        self._requests.append(request)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _reach(self, response: Any) -> None:
        if self.has_left:
            return
        if self.is_reading and not self._unread:
            self._receive(response)
        else:
            self._unread.append(response)

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)


class ConnectionAtOnce(Connection):
    """A connection like Envoy's, which can also write a response without waiting."""

    _has_written = False

    async def write(self, response: Message) -> None:
        """See `Connection.write`."""
        self._has_written = True
        await super().write(response)

    def write_at_once(self, response: Message) -> bool:
        """See `Wire.open`."""
        if not self._has_written or self.has_left or len(self._unread) >= _WINDOW:
            return False
        self._hand_over(response)
        return True
