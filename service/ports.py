"""Reserves ports for a server that starts, and finds the system's reason why a port cannot be used. gRPC's own error
only says how to make gRPC log more."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack
from errno import EADDRINUSE
from typing import Any

from service.process import StartError


class Reservation:
    """Reserves a port without listening: connections are refused until a server listens. host: a name or an address,
    IPv6 with or without brackets; port: 0 for a free one. Raises OSError when no address of `host` can be bound to the
    port, or another process has reserved it.

    On Linux a server may listen on the port meanwhile, because both sockets set SO_REUSEADDR. For the same reason two
    reservations could share a port. So each reservation also takes a name that only one process can have at a time.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = port
        """The port as bound, also where 0 was requested."""
        self._sockets: list[socket.socket] = []
        failures: list[OSError] = []
        for family, kind, protocol, _, address in _resolved(host, port):
            try:
                with ExitStack() as undo:
                    one = undo.enter_context(socket.socket(family, kind, protocol))
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: for closed connections
                    one.bind((address[0], self.port, *address[2:]))
                    self._sockets += [one, *_named(*one.getsockname()[:2])]
                    self.port = one.getsockname()[1]
                    undo.pop_all()
            except OSError as error:
                failures.append(error)
        if failures and not self._sockets:
            raise max(failures, key=lambda error: error.errno == EADDRINUSE)  # the first one, if no port is in use

    def release(self) -> int:
        """Releases the port and returns it. May be called twice."""
        for one in self._sockets:
            one.close()
        self._sockets.clear()
        return self.port


def reserve(host: str, port: int) -> Reservation:
    """Reserves a port for a server that starts. Raises StartError."""
    try:
        return Reservation(host, port)
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {reason_of(error)}") from error


def why_not(host: str, port: int, *, is_in_use: bool) -> str | None:
    """Returns why no address of `host` can be bound to `port`, such as "address already in use"; None when one can be.
    host, port: as for `Reservation`. is_in_use: True: None also when the reason is not another process that has the
    port; False: None also when it is."""
    try:
        Reservation(host, port).release()
    except OSError as error:
        return reason_of(error) if is_in_use == (error.errno == EADDRINUSE) else None
    return None


def reason_of(error: OSError) -> str:
    """Returns the system's reason, beginning in lower case."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def addresses(host: str, port: int) -> list[tuple[str, int]]:
    """Returns the addresses of `host` without duplicates, each with the port. Raises OSError."""
    return list(dict.fromkeys((str(address[0]), port) for *_, address in _resolved(host, port)))


def _named(host: str, port: int) -> list[socket.socket]:
    """Binds an abstract Unix socket, whose name only one process in this network namespace can have. Returns no socket
    where the system does not have such names. Raises OSError when the name is in use."""
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
