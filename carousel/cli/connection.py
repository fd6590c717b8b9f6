"""The server that a command calls, and the caller's credentials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from carousel.async_client import AsyncClient
from carousel.client import Client


@dataclass(frozen=True, slots=True)
class Connection:
    """The options that every command has. ca: of the server's certificate; cert and key: our own."""

    target: str
    token: str | None
    is_tls: bool
    ca: Path | None
    cert: Path | None
    key: Path | None
    timeout: float | None

    def client(self) -> Client:
        """A client; close it. Raises OSError for a file that cannot be read."""
        return Client(self.target, **self._options())

    def async_client(self) -> AsyncClient:
        """An asyncio client; close it. Raises OSError for a file that cannot be read."""
        return AsyncClient(self.target, **self._options())

    def _options(self) -> dict[str, Any]:
        credentials = None
        if self.is_tls or self.ca or self.cert:
            credentials = grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))
        return {"credentials": credentials, "token": self.token, "timeout": self.timeout}


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
