"""Notes for the user that the exporter itself looks for, by their class. All others are plain text."""

from __future__ import annotations


class Forced(str):
    """Says what --force-state allows. The bundle's description repeats it."""

    __slots__ = ()

    def __new__(cls, what: str, although: str = "") -> Forced:
        """Returns the note. although: what the graph says against it."""
        reason = f", although {although}" if although else ""
        return super().__new__(cls, f"{what}: forced by --force-state{reason}")


class OneByOne(str):
    """Says that sessions run one by one, and why."""

    __slots__ = ()
