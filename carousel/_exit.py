"""Frees the calls that still run when the program ends.

gRPC's `__del__` of a call waits for a lock. At its end the interpreter stops gRPC's threads wherever they are, also one
that holds this lock: a call that is freed after that waits forever, and the program does not end. So no call may be
left then.
"""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol


class Freed(Protocol):
    """What holds a call."""

    def free(self) -> None:
        """Cancels the call, and drops the last reference to it. Idempotent."""


_held: weakref.WeakSet[Freed] = weakref.WeakSet()


def free_at_exit(holder: Freed) -> None:
    """Calls `holder.free` when the program ends, if `holder` is there then. Thread-safe."""
    _held.add(holder)


@atexit.register
def _free_all() -> None:
    for holder in list(_held):
        holder.free()


os.register_at_fork(after_in_child=_held.clear)  # the calls belong to the parent
