"""`AsyncClient.watch`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from carousel import _arguments
from carousel._async_call import AsyncResponses
from carousel._async_iteration import AsyncIteration
from carousel._async_turn import AsyncTurn
from carousel._channel import watch_metadata
from carousel._watch_events import WatchEvents
from carousel.errors import CarouselError
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc
from carousel.watching import WatchEvent


class AsyncWatch(AsyncIteration[WatchEvent]):
    """Yields the events of one session. Made by `AsyncClient.watch`.

    A watch can be iterated once. Leaving the loop early, or `aclose`, ends it. Raises the error that ended the watch
    before the session ended: see `AsyncClient.watch`. One task at a time may use it. After a `break`, asyncio closes
    the iterator a moment later: to end the watch at once, use `async with` or `aclose`.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        """start: starts a `grpc.aio.UnaryStreamCall`."""
        self._responses: AsyncResponses[pb.WatchResponse] = AsyncResponses(start)
        self._events = WatchEvents()
        self._turn = AsyncTurn("watch")
        self._is_closed = False

    async def aclose(self) -> None:
        """Ends the watch. Raises nothing."""
        self._is_closed = True
        if self._turn.is_here:
            self._responses.cancel()

    async def _next(self) -> WatchEvent | None:
        """Returns None at the end."""
        with self._turn:
            try:
                message = await self._responses.next()
            except CarouselError:
                if self._is_closed:
                    return None
                raise
        return None if message is None else self._events.event(message)


class AsyncWatchCalls:
    """The call for programs that observe a session and do not feed it."""

    _inference: inference_pb2_grpc.InferenceAsyncStub

    def watch(self, session_id: str, *, timeout: float | None = None) -> AsyncWatch:
        """Watches a session of any client: its tokens, its outputs, and changes of its state. The watch starts at once.
        The first event has the session's position; the last one is a `WatchClosed`. Watching does not detach the
        session's stream, and does not keep the session alive.

        timeout: seconds for the whole watch; default None for no limit, also if the client has a timeout.

        The iterator raises NotFoundError if this server does not have the session in memory (it does not fetch one from
        another server or from the store); ResourceExhaustedError if 16 programs watch it already, or, with reason
        WATCHER_DROPPED, if the program reads events more slowly than they occur: then watch again. A program that reads
        nothing for two more seconds may get RequestCancelledError instead. UnavailableError when the server shuts down
        or the connection is lost; DeadlineExceededError.
        """
        request = pb.WatchRequest(session_id=_arguments.text(session_id, "session_id"))
        within, metadata = _arguments.timeout(timeout), watch_metadata(session_id)
        return AsyncWatch(partial(self._inference.Watch, request, timeout=within, metadata=metadata))
