"""What a signal does to an export: nothing stays half written, and one sentence says so.

1. The signal raises `Interrupted`, which is no `Exception`: what was made so far is taken away on the way out.
2. Other libraries may turn that into an error of their own, or drop it. So it is raised again, each `_AGAIN_S`, until
   the export has ended.
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
    """The process was told to end, by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number
        """As shells have it."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Has `Interrupted` leave what is within it when a signal comes, whatever it has become on its way. To be used by
    the main thread: others get no signals, and nothing is done for them."""
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
