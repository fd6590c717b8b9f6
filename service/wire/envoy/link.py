"""The socket between the launcher and the server inside of Envoy: lines of JSON, both ways.

To the server: `serve` (the command line's arguments, and the launcher's folder), `listening` (the port), `leave`,
`reload`. To the launcher: `ended` (the exit code).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

VARIABLE = "CAROUSEL_LAUNCHER_FD"
"""Which descriptor a process inside of Envoy has the socket at."""


class Link:
    """One end. Event loop only."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Link:
        """The end that `end` is."""
        return cls(*await asyncio.open_connection(sock=end))

    @classmethod
    async def to_launcher(cls) -> Link:
        """The end that this process was started with. Processes that it starts do not have it."""
        end = socket.socket(fileno=int(os.environ.pop(VARIABLE)))
        end.set_inheritable(False)
        return await cls.over(end)

    def send(self, kind: str, value: Any = None) -> None:
        """Sends a message; to an end that is gone, nothing."""
        self._writer.write(json.dumps([kind, value]).encode() + b"\n")

    async def messages(self) -> AsyncIterator[tuple[str, Any]]:
        """What the other end sends, until it is gone."""
        while line := await self._reader.readline():
            kind, value = json.loads(line)
            yield kind, value
