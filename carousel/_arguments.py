"""Checks arguments of calls before anything is sent. Each error names the argument, its value and what was expected.

This module has the checks for any call. Tokens, vectors and constants are checked where they become messages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from carousel.errors import InvalidArgumentError


def invalid(message: str, field: str) -> InvalidArgumentError:
    """The error for a wrong argument, which is not sent. field: the request field, as the server would name it."""
    return InvalidArgumentError(message, field=field, reason="INVALID_FIELD")


def text(value: object, name: str) -> str:
    """Returns a string. Raises TypeError for another type."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r:.60}")
    return value


def flag(value: Any, name: str) -> bool:
    """Returns a bool, also from NumPy's booleans. Raises TypeError for anything else, such as 1 or 'yes'."""
    if not isinstance(value, bool) and getattr(value, "dtype", None) != "bool":
        raise TypeError(f"{name} must be True or False, not {value!r:.60}")
    return bool(value)


def seconds(value: Any, name: str) -> float:
    """Returns seconds. Raises TypeError if it is not a number, InvalidArgumentError for NaN and below 0."""
    if not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number of seconds, not {value!r:.60}")
    number = float(value)
    if math.isnan(number) or number < 0:
        raise invalid(f"{name} = {number:g} must be a number of seconds, 0 or more", name)
    return number


def at_least_one(value: Any, name: str) -> int:
    """Returns a whole number. Raises TypeError if it is not one, InvalidArgumentError below 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, not {value!r:.60}")
    number = int(value)
    if number < 1:
        raise invalid(f"{name} = {number} must be 1 or more", name)
    return number


def one_of(value: Any, choices: Sequence[str], name: str, *, field: str) -> str:
    """Returns one of the words. field: the request field, for the error. Raises InvalidArgumentError for another word,
    another spelling or another type."""
    if not isinstance(value, str) or value not in choices:
        *first, last = map(repr, choices)
        raise invalid(f"{name} = {value!r:.60} must be {', '.join(first)} or {last}", field)
    return value


def timeout(value: float | None) -> float | None:
    """Returns a call's timeout in seconds; None for no limit. Raises the errors of `seconds`."""
    return None if value is None else seconds(value, "timeout")
