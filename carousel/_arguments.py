"""Arguments of calls, checked before anything is sent. Every refusal names the argument, its value and what it must be.

Here are those that any call may have; tokens, vectors and constants are checked where they become messages.
"""

from __future__ import annotations

import math
from typing import Any

from carousel.errors import InvalidArgumentError


def text(value: object, name: str) -> str:
    """Raises TypeError for what is no string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r:.60}")
    return value


def flag(value: Any, name: str) -> bool:
    """Takes NumPy's booleans, too. Raises TypeError for anything else, such as 1 or 'yes'."""
    if not isinstance(value, bool) and getattr(value, "dtype", None) != "bool":
        raise TypeError(f"{name} must be True or False, not {value!r:.60}")
    return bool(value)


def seconds(value: Any, name: str) -> float:
    """Raises TypeError for what is no number, and InvalidArgumentError for NaN."""
    if not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number of seconds, not {value!r:.60}")
    number = float(value)
    if math.isnan(number):
        raise InvalidArgumentError(f"{name} = {number} must be a number of seconds", field=name)
    return number


def timeout(value: float | None) -> float | None:
    """Of a call; None: no limit. Raises what `seconds` raises."""
    return None if value is None else seconds(value, "timeout")
