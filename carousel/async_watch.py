"""`AsyncClient.watch`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from carousel import _answers, _arguments
from carousel._async_unary import is_cancelled
from carousel._channel import watch_metadata
from carousel._home import Home
from carousel._iteration import AsyncIteration
from carousel._watch_events import WatchEvents
from carousel.v1 import inference_pb2 as pb
from carousel.watching import WatchEvent

if TYPE_CHECKING:
    from carousel.v1.inference_pb2_grpc import InferenceAsyncStub  # exists for type checkers alone


class AsyncWatch(AsyncIteration[WatchEvent]):
    """Yields the events of one session. Made by `AsyncClient.watch`.

    A watch can be iterated once. Leaving the loop early, or `aclose`, ends it. After a `break`, asyncio closes the
    iterator a moment later: to end the watch at once, use `async with` or `aclose`. Raises the error that ended the
    watch before the session ended: see `Client.watch`. One task at a time may use it.
    """

    def __init__(self, call: Any) -> None:
        """call: a `grpc.aio.UnaryStreamCall` that has started."""
        self._call = call
        self._messages = aiter(call)
        self._events = WatchEvents()
        self._is_closed = False
        self._home = Home("watch")

    async def aclose(self) -> None:
        """Ends the watch. Raises nothing."""
        self._is_closed = True
        if self._home.is_here:
            self._call.cancel()

    async def _next(self) -> WatchEvent | None:
        """Returns None at the end."""
        self._home.check()
        try:
            message = await anext(self._messages, None)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            if self._is_closed:
                return None
            raise _answers.client_closed() from None
        except grpc.RpcError as error:
            if self._is_closed:
                return None
            raise _answers.rpc_error(error) from error
        return None if message is None else self._events.event(message)


class AsyncWatchCalls:
    """The call for programs that observe a session and do not feed it."""

    _inference: InferenceAsyncStub

    def watch(self, session_id: str, *, timeout: float | None = None) -> AsyncWatch:
        """Watches a session of any client: see `Client.watch`."""
        request = pb.WatchRequest(session_id=_arguments.text(session_id, "session_id"))
        within, metadata = _arguments.timeout(timeout), watch_metadata(session_id)
        return AsyncWatch(self._inference.Watch(request, timeout=within, metadata=metadata))
