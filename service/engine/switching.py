"""Sets how long a thread waits for Python's lock (the GIL) while another thread computes: Python's switch interval.

While an engine's thread drives, the interval is short: the thread returns from runs many times a millisecond, and with
Python's default of 5 ms it would wait longer for the event loop than it ran. At all other times the interval is 5 ms:
otherwise the transport's threads, which bring messages to the event loop one by one, would interrupt it for each
message, and every batch would run before further messages could join it.

Call from the event loop only. The interval holds for the whole process, so the driving engines are counted.
"""

from __future__ import annotations

import sys

_SOON_S = 0.00005
_LATE_S = 0.005


class _Driving:
    num = 0


def num_driving() -> int:
    """Returns how many engines' threads drive."""
    return _Driving.num


def thread_drives() -> None:
    """Shortens the interval. An engine's thread begins to drive."""
    _Driving.num += 1
    sys.setswitchinterval(_SOON_S)


def thread_stops() -> None:
    """Sets the interval to 5 ms when no engine's thread drives any more. One of them has stopped driving."""
    _Driving.num -= 1
    if not _Driving.num:
        sys.setswitchinterval(_LATE_S)
