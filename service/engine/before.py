"""The last tokens before a position, of models that keep them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from service.repository.steps import HISTORY


class Before(NamedTuple):
    """The last tokens before a position: `HISTORY` of them, or all that there are."""

    position: int
    tokens: Sequence[Any]

    def after(self, tokens: Sequence[Any]) -> Before:
        """What is before the position after more tokens."""
        return Before(self.position + len(tokens), [*self.tokens, *tokens][-HISTORY:])
