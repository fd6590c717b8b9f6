"""The interface between the server and its transport, the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import grpc

from service.certificates import Certificates


class Wire(Protocol):
    """Carries calls. Event loop only. `reserve`, `open`, `start` and `stop` are called at most once each, in this
    order. After a failed start, `stop` may be called without the calls before it."""

    name: str
    """The wire's name, as in the setting `wire`."""
    certificates: Certificates | None
    """The certificates for TLS; None for plain text."""

    def handle_signals(self, on_leave: Callable[[], None], on_reload: Callable[[], None]) -> None:
        """Handles signals from here on: calls `on_leave` once when the process must end, and `on_reload` when files
        must be read again."""
        ...

    def reserve(self) -> None:
        """Reserves the port, so that a port in use is found before models are loaded. Raises StartError."""
        ...

    def open(self, interceptor: grpc.aio.ServerInterceptor) -> Any:
        """Returns the object that the generated `add_...Servicer_to_server` functions take. interceptor: surrounds
        every call.

        Handlers receive a `grpc.aio.ServicerContext`. It may also have `write_at_once(message)`, which serializes and
        sends a response without waiting, and returns whether it did.
        """
        ...

    def reset(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Ends a call whose client does not read, and drops its unsent responses: at once and without a status, or with
        a status that waits for the client and holds nothing of the server. Called by the task of the call's handler,
        which must raise next and not write again."""
        ...

    async def start(self) -> int:
        """Accepts calls from here on. Returns the port. Raises StartError."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, and ends calls that are still in progress after `grace_s` seconds."""
        ...

    def reload(self) -> None:
        """Reads the certificates again. Called by any thread; blocks while files are read."""
        ...
