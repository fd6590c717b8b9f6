"""Lets Ctrl-C end the command `carousel` without a traceback while it imports this package. Changes nothing in other
programs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Any

_PROGRAM = sys.orig_argv[1:3]


def _end(*_: Any) -> None:
    os._exit(130)


def finish() -> None:
    """Restores Python's handler, when the package is imported."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_is_command = _PROGRAM == ["-m", "carousel"] or (_PROGRAM and _PROGRAM[0].endswith("/carousel"))
if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with contextlib.suppress(ValueError):  # raised in a thread that is not the main one
        signal.signal(signal.SIGINT, _end)
