"""The last tokens before a position, for models that keep them in a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from service.repository.steps import HISTORY


class LastTokens(NamedTuple):
    """The last tokens before a position: `HISTORY` of them, or all when there are fewer."""

    position: int
    tokens: Sequence[Any]

    def after(self, tokens: Sequence[Any]) -> LastTokens:
        """Returns the last tokens before the position that follows more `tokens`."""
        return LastTokens(self.position + len(tokens), [*self.tokens, *tokens][-HISTORY:])
