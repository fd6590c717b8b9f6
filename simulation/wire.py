"""One call's connection, in place of gRPC's: what `context` is to a servicer of the service.

Requests arrive in order, each after a delay. A response is copied as the transport would, handed to the client after
a delay, and `write` waits while the client has too much that it has not read. Either side may leave.
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
"""Responses that are on their way to a client that does not read, before `write` waits."""


_TICK_S = 1e-6
"""Between two messages: timers of one time have no order."""


class CallEnded(Exception):  # what grpc calls an abort
    """The servicer ended the call with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code


class Connection:
    """A `ServicerContext`, as far as servicers use one. receive: told of each response; written: told of each
    response when the servicer hands it over; delay: draws how long a message is on its way."""

    def __init__(
        self,
        receive: Callable[[Any], None],
        delay: Callable[[], float],
        written: Callable[[Any], None] = lambda response: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # the client's: what it does on a response is not the server's doing
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

    # the client's side

    def send(self, request: Any) -> None:
        """Sends a request, or grpc.aio.EOF: the client's last word."""
        self._arrives_at_s = max(self._loop.time() + self._delay(), self._arrives_at_s + _TICK_S)
        self._loop.call_at(self._arrives_at_s, self._arrive, request)

    def leave(self) -> None:
        """The client is gone: it gets nothing more."""
        self.has_left = True
        self._arrive(grpc.aio.EOF)
        self._make_room()

    def set_reading(self, is_reading: bool) -> None:
        """Stops reading, or reads what waits and goes on."""
        self.is_reading = is_reading
        while self.is_reading and self._unread:
            self._receive(self._unread.popleft())
        self._make_room()

    # the servicer's side

    def peer(self) -> str:
        """See `ServicerContext`."""
        return "simulated"

    def code(self) -> None:
        """See `ServicerContext`."""

    def invocation_metadata(self) -> tuple[()]:
        """See `ServicerContext`."""
        return ()

    def finish(self, word: Any) -> None:
        """The call is over: `word` comes after all that is on its way."""
        self._reaches_at_s = max(self._loop.time() + self._delay(), self._reaches_at_s + _TICK_S)
        self._loop.call_at(self._reaches_at_s, self._reach, word, context=self._context)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """See `ServicerContext`."""
        raise CallEnded(code, details)

    def reset(self) -> None:
        """See `Wire.reset`."""
        self._unread.clear()

    async def read(self) -> Any:
        """The next request; grpc.aio.EOF when there will be no more."""
        while not self._requests:
            self._arrival = self._loop.create_future()
            await self._arrival
        if self._requests[0] is grpc.aio.EOF:
            return grpc.aio.EOF
        return self._requests.popleft()

    async def write(self, response: Message) -> None:
        """Hands a response over. Raises grpc.aio.InternalError when the client has left."""
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
    """One on Envoy's wire, where a response may be written where it is made."""

    _has_written = False

    async def write(self, response: Message) -> None:
        """As `Connection.write`."""
        self._has_written = True
        await super().write(response)

    def write_at_once(self, response: Message) -> bool:
        """See `Wire.open`."""
        if not self._has_written or self.has_left or len(self._unread) >= _WINDOW:
            return False
        self._hand_over(response)
        return True
