"""What models of tokens have in common: an embedding, a stack of recurrent layers, a projection to logits.

Shapes: `B` batch, `T` time, `L` layers, `V` what the logits are over.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from models.recurrent import CellKind
from models.stack import RecurrentStack


class Sizes(Protocol):
    """What it needs to know of its sizes."""

    @property
    def vocabulary_size(self) -> int:
        """Of what it reads."""

    @property
    def embedding_size(self) -> int:
        """Of a token."""

    @property
    def hidden_size(self) -> int:
        """Of each layer."""

    @property
    def num_layers(self) -> int:
        """L."""

    @property
    def dropout(self) -> float:
        """The share of units that are left out in training."""

    @property
    def cell(self) -> CellKind:
        """The layers' kind."""

    @property
    def projection_size(self) -> int:
        """For the cell "lstm-projected", else 0."""


class TokenStack(nn.Module):
    """Logits after each token; one step or a ragged chunk of them, from explicit state to explicit state."""

    def __init__(self, sizes: Sizes, output_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary_size, sizes.embedding_size)
        self.dropout = nn.Dropout(sizes.dropout)
        self.stack = RecurrentStack(
            sizes.cell,
            sizes.embedding_size,
            sizes.hidden_size,
            num_layers=sizes.num_layers,
            dropout=sizes.dropout,
            projection_size=sizes.projection_size,
        )
        self.projection = nn.Linear(self.stack.output_size, output_size)

    def forward(self, tokens: Tensor, lengths: Tensor | None, *states: Tensor) -> tuple[Tensor, ...]:
        """tokens: [B, T] int64; lengths: [B] int64 in 1..T, or None when every row is T long; states: the stack's, [L,
        B, size] each.

        Returns logits [B, T, V] (meaningless past a row's length) and the next states.
        """
        outputs = self.dropout(self.embedding(tokens)).transpose(0, 1)  # [T, B, E]
        outputs, *following = self.stack(outputs, lengths, *states)
        return (self.projection(outputs).transpose(0, 1), *following)


class TokenReadout(nn.Module):
    """What comes after a state as it is: the logits of the step that led to it, without a step."""

    def __init__(self, model: TokenStack) -> None:
        super().__init__()
        self.projection = model.projection

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [L, B, size]. Returns logits [B, V]."""
        logits: Tensor = self.projection(hidden[-1:])  # [1, B, V], as in a step: a plain matrix gets another product
        return logits.squeeze(0)
