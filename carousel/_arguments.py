"""Checks arguments of calls before anything is sent. Each error names the argument, its value and what was expected.

This module has the checks for any call. Tokens, vectors and constants are checked where they become messages.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from carousel.errors import InvalidArgumentError


def invalid(message: str, field: str) -> InvalidArgumentError:
    """The error for a wrong argument, which is not sent. field: the request field, as the server would name it."""
    return InvalidArgumentError(message, field=field, reason="INVALID_FIELD")


def text(value: object, name: str) -> str:
    """Returns a string. Raises TypeError for another type, InvalidArgumentError if UTF-8 cannot hold it."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(f"{name} = {value!r:.60} must be Unicode text, without surrogates", name) from None
    return value


def address(target: object) -> str:
    """Returns a server's address. Raises the errors of `text`, and InvalidArgumentError for an empty string."""
    if not (found := text(target, "target")):
        raise invalid("target = '' must be an address, such as 'localhost:50051'", "target")
    return found


def iterable(value: Any, name: str, of: str) -> Any:
    """Returns an iterable. of: what it must contain. Raises TypeError for another type."""
    if not hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
        raise TypeError(f"{name} must be an iterable of {of}, not {value!r:.60}")
    return value


def flag(value: Any, name: str) -> bool:
    """Returns a bool, also from NumPy's booleans. Raises TypeError for anything else, such as 1 or 'yes'."""
    if not isinstance(value, bool) and getattr(value, "dtype", None) != "bool":
        raise TypeError(f"{name} must be True or False, not {value!r:.60}")
    return bool(value)


def number(value: Any, name: str, expected: str = "a number") -> float:
    """Returns a float. Raises TypeError if it is not a number, and for True and False."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be {expected}, not {value!r:.60}")
    return float(value)


def seconds(value: Any, name: str) -> float:
    """Returns seconds. Raises TypeError if it is not a number, InvalidArgumentError for NaN and below 0."""
    found = number(value, name, "a number of seconds")
    if math.isnan(found) or found < 0:
        raise invalid(f"{name} = {found:g} must be a number of seconds, 0 or more", name)
    return found


def integer(value: Any, name: str) -> int:
    """Returns a whole number, also from NumPy's. Raises TypeError for another type, and for True and False."""
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None:
        raise TypeError(f"{name} must be an integer, not {value!r:.60}")
    return found


def at_least_one(value: Any, name: str) -> int:
    """Returns a whole number. Raises TypeError if it is not one, InvalidArgumentError below 1 and above 31 bits."""
    found = integer(value, name)
    if not 1 <= found < 1 << 31:
        raise invalid(f"{name} = {found} must be 1 to {(1 << 31) - 1}", name)
    return found


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
