"""Why a port cannot be listened on, told by the system: gRPC's own error says only how to make it log more."""

from __future__ import annotations

import socket
from typing import Any


def why_not(host: str, port: int) -> str | None:
    """The reason why no address of `host` can be bound to `port`, such as "address already in use"; None when one can.
    host: a name or an address, of IPv6 also in brackets."""
    reason = None
    try:
        found = _resolved(host, port)
    except OSError as error:
        return _told(error)
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: closed connections are none
                one.bind(address)
                return None
        except OSError as error:
            reason = reason or _told(error)
    return reason


def addresses(host: str, port: int) -> list[tuple[str, int]]:
    """The addresses of `host`, each once, with the port. Raises OSError."""
    return list(dict.fromkeys((str(address[0]), port) for *_, address in _resolved(host, port)))


def _resolved(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)


def _told(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
