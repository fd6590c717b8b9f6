"""What the server asks of a wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import grpc

from service.certificates import Certificates


class Wire(Protocol):
    """Carries calls. Event loop only; `reserve`, `open`, `start` and `stop` are called once each, in this order. A
    start that fails may leave out those before `stop`."""

    name: str
    """As the setting `wire` has it."""
    certificates: Certificates | None
    """What it accepts TLS with; None where it speaks plain text."""

    def handle_signals(self, on_leave: Callable[[], None], on_reload: Callable[[], None]) -> None:
        """From here on calls `on_leave`, once, when the process is to end, and `on_reload` when files are to be read
        again."""
        ...

    def reserve(self) -> None:
        """Keeps the port, so that none in use is found out after models were loaded. Raises StartError."""
        ...

    def open(self, interceptor: grpc.aio.ServerInterceptor) -> Any:
        """What the generated `add_...Servicer_to_server` take. interceptor: surrounds every call.

        Handlers get a `grpc.aio.ServicerContext`. It may have `write_at_once(message)` besides, which serializes and
        sends a response without waiting, and returns whether it did.
        """
        ...

    def reset(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Ends a call whose client does not read, without what is unsent: at once, without a status, or with one that
        nothing of the server waits with. Called by the task of its handler, which raises next, and writes no more."""
        ...

    async def start(self) -> int:
        """Accepts calls from here on. Returns the port. Raises StartError."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, and ends those that have not ended after `grace_s` seconds."""
        ...

    def reload(self) -> None:
        """Reads the certificates again. Called by any thread; blocks while files are read."""
        ...
