"""The socket between the launcher and the server inside Envoy. Both sides send lines of JSON.

To the server: `serve` (the command line's arguments, the launcher's folder, and the path of its Python), `listening`
(the port), `leave`, `reload`. To the launcher: `ended` (the exit code).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

VARIABLE = "CAROUSEL_LAUNCHER_FD"
"""The variable with the socket's file descriptor in the process inside Envoy."""


class Link:
    """One end of the socket. Event loop only."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Link:
        """Returns the link over a socket."""
        return cls(*await asyncio.open_connection(sock=end))

    @classmethod
    async def to_launcher(cls) -> Link:
        """Returns the link over the socket that this process was started with. Child processes do not inherit it."""
        end = socket.socket(fileno=int(os.environ.pop(VARIABLE)))
        end.set_inheritable(False)
        return await cls.over(end)

    def send(self, kind: str, value: Any = None) -> None:
        """Sends a message. Does nothing if the other end is closed."""
        self._writer.write(json.dumps([kind, value]).encode() + b"\n")

    async def messages(self) -> AsyncIterator[tuple[str, Any]]:
        """Yields the messages of the other end until it is closed."""
        while line := await self._reader.readline():
            kind, value = json.loads(line)
            yield kind, value
