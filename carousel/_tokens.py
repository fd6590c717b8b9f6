"""Tokens and counts as messages have them. Every refusal names the field."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from carousel.errors import InvalidArgumentError


def split(tokens: Iterable[object], names_field: str, ids_field: str) -> tuple[list[str], list[int]]:
    """Names or ids: one of the two lists is empty."""
    if isinstance(tokens, bytes | bytearray):
        raise TypeError(f"tokens are given by name (str) or by id (int), not as {type(tokens).__name__}")
    tokens = list(tokens)
    names = [token for token in tokens if isinstance(token, str)]
    if len(names) == len(tokens):
        return names, []
    if names:
        raise TypeError(f"{names_field} or {ids_field}: tokens are given all by name (str) or all by id (int)")
    return [], [uint(token, 32, f"{ids_field}[{index}]") for index, token in enumerate(tokens)]


def uint(value: object, bits: int, field: str) -> int:
    """A number of so many bits. Takes whatever Python takes as an index, so that an array's own integers will do."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{field} must be an integer, not {type(value).__name__}") from None
    if not 0 <= number < 1 << bits:
        raise InvalidArgumentError(f"{field} = {number} must be 0 to {(1 << bits) - 1}", field=field)
    return number
