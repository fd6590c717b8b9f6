"""What can go wrong in an export that somebody can act on."""

from __future__ import annotations


class ExportError(Exception):
    """No bundle was written; the message says why, and what to do where something can be done."""
