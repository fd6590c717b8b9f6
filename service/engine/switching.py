"""How soon a thread that waits for Python's lock (the GIL) gets it from one that does not give it up by itself.

While an engine's thread drives, soon: its runs come back many times a millisecond, and with Python's own interval of
5 ms it would wait longer for the event loop than it ran. At all other times late: the threads of a wire, which bring
messages to the event loop one by one, would interrupt it for each of them, so that every batch would be run before its
fellows have come.

Event loop only. Of the whole process: engines are counted.
"""

from __future__ import annotations

import sys

_SOON_S = 0.00005
_LATE_S = 0.005


class _Driving:
    num = 0


def thread_drives() -> None:
    """An engine's thread drives from here on."""
    _Driving.num += 1
    sys.setswitchinterval(_SOON_S)


def thread_rests() -> None:
    """It has given back what it was handed."""
    _Driving.num -= 1
    if not _Driving.num:
        sys.setswitchinterval(_LATE_S)
