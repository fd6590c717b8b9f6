"""The ways in which a client leaves a call."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from tests.wire.conformance.http2 import Connection

Leave = Callable[[Connection, int], None]


def _reset(one: Connection, stream: int) -> None:
    one.reset(stream)
    one.ping()


def _close(one: Connection, stream: int) -> None:
    one.socket.close()


def _abort(one: Connection, stream: int) -> None:
    one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.socket.close()


WAYS: dict[str, Leave] = {"reset": _reset, "close": _close, "abort": _abort}
"""RST_STREAM on an open connection; the end of the connection by a TCP FIN; the same by a TCP RST."""
