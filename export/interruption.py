"""Ends an export on a signal: nothing stays half written, and the user gets one message.

1. The signal raises `Interrupted`, which is no `Exception`. The code that it leaves removes what the export has made.
2. Other libraries may turn `Interrupted` into an error of their own, or drop it. So it is raised again every `_AGAIN_S`
   until the export has ended.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AGAIN_S = 2.0


class Interrupted(BaseException):
    """A signal told the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number
        """128 plus the signal's number, as in shells."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raises `Interrupted` out of its body when SIGTERM or SIGINT arrives, also if a library raises another error then.

    For the main thread, which alone gets signals; in other threads it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    got: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGALRM:
            got.append(number)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
        raise Interrupted(got[0])

    before = {number: signal.signal(number, interrupt) for number in (*_SIGNALS, signal.SIGALRM)}
    try:
        yield
    except BaseException as error:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        if got and not isinstance(error, Interrupted):
            raise Interrupted(got[0]) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)
