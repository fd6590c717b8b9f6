"""`Client.watch`."""

from __future__ import annotations

from typing import Any

import grpc

from carousel import _answers, _arguments
from carousel._channel import watch_metadata
from carousel._iteration import Iteration
from carousel._turn import Turn
from carousel._watch_events import WatchEvents
from carousel.v1 import inference_pb2 as pb
from carousel.v1.inference_pb2_grpc import InferenceStub
from carousel.watching import WatchEvent


class Watch(Iteration[WatchEvent]):
    """What happens to one session, event by event. Made by `Client.watch`.

    Iterate over it once; leaving the loop early, or `close`, ends the watch. Raises the error that ended it before the
    session did: see `Client.watch`. One thread at a time may iterate; ConcurrentUseError for a second. Any may
    close it.
    """

    def __init__(self, call: Any) -> None:
        """call: a `grpc.UnaryStreamCall`, which has begun."""
        self._call = call
        self._events = WatchEvents()
        self._turn = Turn("watch")
        self._is_closed = False

    def close(self) -> None:
        """Ends the watch. Raises nothing."""
        self._is_closed = True
        if self._turn.is_here:
            self._call.cancel()

    def _next(self) -> WatchEvent | None:
        """None at the end."""
        with self._turn:
            try:
                message = next(self._call, None)
            except grpc.RpcError as error:
                if self._is_closed:
                    return None
                raise _answers.rpc_error(error) from error
        return None if message is None else self._events.event(message)


class WatchCalls:
    """Sessions as they are seen by whoever does not feed them."""

    _inference: InferenceStub

    def watch(self, session_id: str, *, timeout: float | None = None) -> Watch:
        """Watches a session, whoever feeds it: its tokens, its outputs, and what becomes of it. The watch begins at
        once, and the first event tells from where; it ends after a `WatchClosed`. Watching takes the session from
        nobody, and does not keep it alive.

        timeout: seconds, for all of it; None, the default, for no limit, whatever the client's own is.

        The iterator raises NotFoundError for a session that this server does not have: one that is with another, or in
        the store alone, is not fetched; ResourceExhaustedError when 16 watch it already, and, with the reason
        WATCHER_DROPPED, when its events are not read as fast as they come: watch it again then (who reads nothing for
        two more seconds may get RequestCancelledError in its place); UnavailableError when
        the server shuts down or the connection is lost; DeadlineExceededError.
        """
        request = pb.WatchRequest(session_id=_arguments.text(session_id, "session_id"))
        within, metadata = _arguments.timeout(timeout), watch_metadata(session_id)
        return Watch(self._inference.Watch(request, timeout=within, metadata=metadata))
