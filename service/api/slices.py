"""Large messages are made in slices of fields: after each the event loop serves others."""

from __future__ import annotations

import asyncio

SLICE = 1000
"""Fields of a message, each of which takes about 1 us to make."""
ARRAY = 8
"""An array takes as long as so many other fields."""
ERROR = 20
"""So does an error."""
NUMBERS = 16
"""Plain numbers of a packed field that take as long as another field."""


class Slices:
    """Counts what was made since the event loop had its last turn. Event loop only."""

    def __init__(self) -> None:
        self._left = SLICE

    async def made(self, num_fields: int) -> None:
        """So many fields were made."""
        self._left -= num_fields
        if self._left <= 0:
            self._left = SLICE
            await asyncio.sleep(0)
