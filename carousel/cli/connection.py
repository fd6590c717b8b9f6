"""The server that a command calls, and the caller's credentials."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from carousel.async_client import AsyncClient
from carousel.cli.reading import InputError
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
        """A client; close it. Raises OSError for a file that cannot be read, and InputError for one that is no good."""
        return Client(self.target, **self._options())

    def async_client(self) -> AsyncClient:
        """An asyncio client; close it. Raises what `client` does."""
        return AsyncClient(self.target, **self._options())

    def _options(self) -> dict[str, Any]:
        credentials = None
        if self.is_tls or self.ca or self.cert:
            ca, key, cert = _read(self.ca), _read(self.key), _read(self.cert)
            self._check_files()
            credentials = grpc.ssl_channel_credentials(ca, key, cert)
        return {"credentials": credentials, "token": self.token, "timeout": self.timeout}

    def _check_files(self) -> None:
        """Raises InputError for files with which gRPC would try to connect, and say no more than that it cannot."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise InputError(f"{self.ca} has no certificate of an authority in PEM: {error.reason}") from None
        try:
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key, password="")
        except ssl.SSLError as error:
            told = f"{self.cert} and {self.key} are no certificate and its key in PEM: {error.reason}"
            raise InputError(told) from None


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
