"""Ports: kept for a server that is about to listen, and why one cannot be listened on, told by the system. gRPC's own
error says only how to make it log more."""

from __future__ import annotations

import socket
import sys
from typing import Any

from service.process import StartError


class Reservation:
    """Keeps a port, without listening: who connects is refused until somebody listens. host: a name or an address, of
    IPv6 also in brackets; port: 0 takes a free one. Raises OSError when no address of `host` can be bound to it, or
    another process keeps it so.

    On Linux a server may listen at the port meanwhile, as both sockets allow that (SO_REUSEADDR). As two that do not
    listen yet could then have it both, a name that one process has at a time goes with it.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = port
        """The real one, also where 0 was asked for."""
        self._sockets: list[socket.socket] = []
        failure: OSError | None = None
        for family, kind, protocol, _, address in _resolved(host, port):
            try:
                one = socket.socket(family, kind, protocol)
            except OSError as error:
                failure = failure or error
                continue
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: closed connections are none
                one.bind((address[0], self.port, *address[2:]))
                names = _named(*one.getsockname()[:2])
            except OSError as error:
                one.close()
                failure = failure or error
            else:
                self._sockets += [one, *names]
                self.port = one.getsockname()[1]
        if failure is not None and not self._sockets:
            raise failure

    def release(self) -> int:
        """Lets the port go; it may be called twice. Returns it."""
        for one in self._sockets:
            one.close()
        self._sockets.clear()
        return self.port


def reserve(host: str, port: int) -> Reservation:
    """Keeps a port for the server that starts. Raises StartError."""
    try:
        return Reservation(host, port)
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {reason_of(error)}") from error


def why_not(host: str, port: int) -> str | None:
    """The reason why no address of `host` can be bound to `port`, such as "address already in use"; None when one can.
    host, port: as those of a `Reservation`."""
    try:
        Reservation(host, port).release()
    except OSError as error:
        return reason_of(error)
    return None


def reason_of(error: OSError) -> str:
    """The system's reason, in lower case."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def addresses(host: str, port: int) -> list[tuple[str, int]]:
    """The addresses of `host`, each once, with the port. Raises OSError."""
    return list(dict.fromkeys((str(address[0]), port) for *_, address in _resolved(host, port)))


def _named(host: str, port: int) -> list[socket.socket]:
    """A socket without a file, of a name that one process of this network has at a time; none where the system has no
    such names. Raises OSError."""
    if sys.platform != "linux":
        return []
    one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        one.bind(f"\0carousel/{host}/{port}")
    except OSError:
        one.close()
        raise
    return [one]


def _resolved(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
