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
    """What happens to one session, event by event. Made by `AsyncClient.watch`.

    Iterate over it once; leaving the loop early, or `aclose`, ends the watch. asyncio finishes a loop that was left
    with `break` a moment later, so use `async with` or `aclose` to end it at once. Raises the error that ended it
    before the session did: see `Client.watch`. For one task at a time.
    """

    def __init__(self, call: Any) -> None:
        """call: a `grpc.aio.UnaryStreamCall`, which has begun."""
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
        """None at the end."""
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
    """Sessions as they are seen by whoever does not feed them."""

    _inference: InferenceAsyncStub

    def watch(self, session_id: str, *, timeout: float | None = None) -> AsyncWatch:
        """Watches a session, whoever feeds it: see `Client.watch`."""
        request = pb.WatchRequest(session_id=_arguments.text(session_id, "session_id"))
        within, metadata = _arguments.timeout(timeout), watch_metadata(session_id)
        return AsyncWatch(self._inference.Watch(request, timeout=within, metadata=metadata))
