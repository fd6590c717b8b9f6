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
    """Yields the events of one session. Made by `Client.watch`.

    A watch can be iterated once. Leaving the loop early, or `close`, ends it. Raises the error that ended the watch
    before the session ended: see `Client.watch`. One thread at a time may iterate: a second thread gets
    ConcurrentUseError. Any thread may close it.
    """

    def __init__(self, call: Any) -> None:
        """call: a `grpc.UnaryStreamCall` that has started."""
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
        """Returns None at the end."""
        with self._turn:
            try:
                message = next(self._call, None)
            except grpc.RpcError as error:
                if self._is_closed:
                    return None
                raise _answers.rpc_error(error) from error
        return None if message is None else self._events.event(message)


class WatchCalls:
    """The call for programs that observe a session and do not feed it."""

    _inference: InferenceStub

    def watch(self, session_id: str, *, timeout: float | None = None) -> Watch:
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
        return Watch(self._inference.Watch(request, timeout=within, metadata=metadata))
