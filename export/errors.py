"""What can go wrong in an export that somebody can act on."""

from __future__ import annotations


class ExportError(Exception):
    """No bundle was written; the message says why, and what to do where something can be done."""


def first_line(error: Exception) -> str:
    """What an error of another library says, without what follows its first line."""
    return str(error).strip().partition("\n")[0].rstrip(".")[:400]
