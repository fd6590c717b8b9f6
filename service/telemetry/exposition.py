"""The HTTP server from which Prometheus reads the metrics."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from prometheus_client import CollectorRegistry, start_http_server

_BEGIN_S = 0.01
"""Seconds after which the thread that runs `shutdown` has certainly asked the server to stop."""


class Exposition:
    """Serves the metrics from a thread of its own. Raises OSError if it cannot listen on `port`."""

    def __init__(self, port: int, host: str, registry: CollectorRegistry) -> None:
        self._server, self._thread = start_http_server(port, host, registry)
        self.port = self._server.server_port
        """The actual port, also if 0 was asked for."""

    async def stop(self) -> None:
        """Stops the server and its thread."""
        ending = asyncio.create_task(asyncio.to_thread(self._server.shutdown))
        # the server checks whether to stop twice a second and at each connection, so connecting stops it at once
        await asyncio.sleep(_BEGIN_S)
        with suppress(OSError), socket.socket(self._server.address_family) as one:
            one.setblocking(False)
            one.connect_ex(self._server.server_address)
            await ending
        await ending
        self._server.server_close()
        self._thread.join()
