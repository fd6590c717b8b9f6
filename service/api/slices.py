"""Counts the fields of large messages, which are made in slices: after each slice the event loop serves others."""

from __future__ import annotations

import asyncio

SLICE = 1000
"""Fields in a slice. Each takes about 1 us to make."""
ARRAY = 8
"""An array takes as long as this number of other fields."""
ERROR = 20
"""An error takes as long as this number of other fields."""
NUMBERS = 16
"""This number of plain numbers in a packed field takes as long as one other field."""


class Slices:
    """Counts the fields that were made since the event loop last served others. Event loop only."""

    def __init__(self) -> None:
        self._left = SLICE

    async def made(self, num_fields: int) -> None:
        """Counts fields that were made. At the end of a slice, lets the event loop serve others."""
        self._left -= num_fields
        if self._left <= 0:
            self._left = SLICE
            await asyncio.sleep(0)
