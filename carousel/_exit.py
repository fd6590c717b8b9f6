"""Closes clients and calls when the program ends.

At its end the interpreter stops gRPC's threads wherever they are, also one that holds the lock of a call or has yet to
end one. gRPC then waits forever: in `Channel.close`, in a new call, and in the `__del__` of a call. So all clients are
closed before, and no call is left.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from typing import Protocol


class Closed(Protocol):
    """A client, or what holds a call."""

    def close(self) -> None:
        """Closes the client, or cancels the call and drops the last reference to it. Idempotent. Raises nothing."""


_held: weakref.WeakSet[Closed] = weakref.WeakSet()
_ending = threading.Event()


def close_at_exit(holder: Closed) -> None:
    """Calls `holder.close` when the program ends, if `holder` is there then. Thread-safe."""
    _held.add(holder)


def stay_at_exit() -> None:
    """When the program ends, keeps a daemon thread from raising that its client was closed: the interpreter stops it in
    a moment, as it stops daemon threads that do something else."""
    while _ending.is_set() and threading.current_thread().daemon:
        time.sleep(1)


@atexit.register
def _close_all() -> None:
    _ending.set()
    for holder in list(_held):
        holder.close()


os.register_at_fork(after_in_child=_held.clear)  # the calls belong to the parent
