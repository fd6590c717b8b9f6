"""All that a lane is, as values of its own."""

from __future__ import annotations

from typing import NamedTuple

from service.engine.arena import Array
from service.engine.decoding import FloatRow, IntArray
from service.engine.items import Item


class LaneState(NamedTuple):
    """Where a lane is, at a boundary between tokens.

    pending, next_logits: see `Lane`. states: one array a state tensor, of the manifest's shape without its batch axis;
    contexts: one [S, ...] array a context tensor, S the source's length. None of the arrays is to be written to.
    num_produced, seen: of the generation in hand, if one is: tokens so far, and [any number] which of them the
    repetition penalty has noted.
    """

    position: int
    pending: list[Item]
    next_logits: FloatRow | None
    states: list[Array]
    contexts: list[Array]
    num_produced: int = 0
    seen: IntArray | None = None

    @property
    def num_bytes(self) -> int:
        """Of its arrays."""
        return sum(array.nbytes for array in (*self.states, *self.contexts))
