"""An HTTP/1.1 client over plain sockets that sends any bytes (RFC 9112)."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

TIMEOUT_S = 20.0


@dataclass
class Answer:
    """A response.

    status: 0 if the response is not HTTP/1.1. body: without chunk headers. is_closed: whether the server has closed the
    connection.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    is_closed: bool = False


def request(method: str, target: str, body: bytes = b"", /, **headers: str | None) -> bytes:
    """Returns a request to `localhost`. headers: names with `_` for `-`; None omits a default header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    found = {"host": "localhost", "content-length": str(len(body)), **named}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in found.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode() + body


def exchange(target: str, sent: bytes) -> Answer:
    """Sends a request with `connection: close`. Returns the response once the server has closed the connection."""
    return _parsed(received(target, sent))


def received(target: str, sent: bytes) -> bytes:
    """Returns what the server sends until it closes the connection."""
    host, _, port = target.rpartition(":")
    found = b""
    with socket.create_connection((host, int(port)), TIMEOUT_S) as one:
        try:
            one.sendall(sent)
            while more := one.recv(65536):
                found += more
        except (ConnectionResetError, BrokenPipeError):  # the response is complete
            pass
    return found


def _parsed(data: bytes) -> Answer:
    if not data.startswith(b"HTTP/1.1 "):
        return Answer(is_closed=True)
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    found = Answer(int(first.split()[1]), _headers(lines), rest, is_closed=True)
    if found.headers.get("transfer-encoding") == "chunked":
        found.body = b""
        while rest:  # a response to HEAD has no chunks
            size, _, rest = rest.partition(b"\r\n")
            if not int(size, 16):
                break
            found.body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        found.trailers = _headers(rest.decode("latin-1").split("\r\n"))
    return found


def _headers(lines: list[str]) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
