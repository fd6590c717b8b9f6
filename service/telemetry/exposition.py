"""The HTTP server that Prometheus reads the metrics from."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from prometheus_client import CollectorRegistry, start_http_server

_BEGIN_S = 0.01
"""Seconds until a thread that ends it has certainly said so."""


class Exposition:
    """Answers from a thread of its own. Raises OSError when it cannot listen at `port`."""

    def __init__(self, port: int, host: str, registry: CollectorRegistry) -> None:
        self._server, self._thread = start_http_server(port, host, registry)
        self.port = self._server.server_port
        """The real one, also where 0 was asked for."""

    async def stop(self) -> None:
        """Ends the thread."""
        ending = asyncio.create_task(asyncio.to_thread(self._server.shutdown))
        # it looks twice a second whether it is to end, and whenever somebody connects
        await asyncio.sleep(_BEGIN_S)
        with suppress(OSError), socket.socket(self._server.address_family) as one:
            one.setblocking(False)
            one.connect_ex(self._server.server_address)
            await ending
        await ending
        self._server.server_close()
        self._thread.join()
