"""The folder that the launcher makes for Envoy: for a socket, and files that name the certificates."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.wire.envoy.library import MissingError

SOCKET = "admin.sock"
"""The socket of Envoy's admin interface in the folder, which no other user can enter."""
_PREFIX = "carousel-envoy-"
_NUM_RANDOM = 8
"""Characters that `tempfile` adds to a prefix."""
_MAX_SOCKET_PATH = 107
"""Most bytes of a socket's path on Linux."""


def check() -> None:
    """Raises MissingError when there is no place for the folder, or only one whose path is too long for the socket."""
    try:
        place = tempfile.gettempdir()
    except OSError as error:
        hint = "mount one (for a container: --tmpfs /tmp), or set TMPDIR"
        raise MissingError(f"no folder for temporary files is writable: {hint}") from error
    most = _MAX_SOCKET_PATH - len(f"/{_PREFIX}/{SOCKET}") - _NUM_RANDOM
    if len(os.fsencode(place)) > most:
        hint = f"set TMPDIR to a path of at most {most} bytes"
        raise MissingError(f"the path {place} is too long for a socket in it: {hint}")


@contextmanager
def made() -> Iterator[Path]:
    """Makes a folder, and removes it at the end. Also removes those of launchers that were killed. Raises OSError."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with socket.socket(socket.AF_UNIX) as one, suppress(OSError):
            try:
                one.connect(str(left / SOCKET))
            except ConnectionRefusedError:  # its socket has no listener
                shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
