"""Converts tokens and counts to the form that messages have. Each error names the field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from carousel._arguments import integer, invalid, text


def split(tokens: Iterable[object], names_field: str, ids_field: str) -> tuple[list[str], list[int]]:
    """Returns names and ids; one of the two lists is empty. Raises TypeError for a mix of both."""
    if not is_ordered(tokens):
        raise _malformed(names_field, ids_field, "names (str) or ids (int), one after the other", tokens)
    tokens = list(tokens)
    names = [token for token in tokens if isinstance(token, str)]
    if len(names) == len(tokens):
        return [text(name, f"{names_field}[{index}]") for index, name in enumerate(names)], []
    if names:
        raise _malformed(names_field, ids_field, "all names (str) or all ids (int)", tokens)
    return [], [uint(token, 32, f"{ids_field}[{index}]") for index, token in enumerate(tokens)]


def is_ordered(value: object) -> bool:
    """Whether a value is an ordered collection, which may hold tokens."""
    return isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | Mapping | Set)


def uint(value: object, bits: int, field: str, *, least: int = 0) -> int:
    """Returns an unsigned integer of so many bits. Accepts every type with `__index__`, such as NumPy's integers.

    least: the least value that the server accepts, for the error. The server itself refuses 0, as it knows the most.
    """
    number = integer(value, field)
    if not 0 <= number < 1 << bits:
        raise invalid(f"{field} = {number} must be {least} to {(1 << bits) - 1}", field)
    return number


def _malformed(names_field: str, ids_field: str, expected: str, value: object) -> TypeError:
    return TypeError(f"{names_field} or {ids_field} must be {expected}, not {value!r:.60}")
