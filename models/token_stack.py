"""The common part of models that read tokens: an embedding, recurrent layers, and a projection to logits.

Shapes: `B` batch, `T` time, `L` layers, `V` size of the logits.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from models.recurrent import CellKind
from models.stack import RecurrentStack


class Sizes(Protocol):
    """The sizes of a `TokenStack`."""

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that the model can read."""

    @property
    def embedding_size(self) -> int:
        """Size of a token's embedding."""

    @property
    def hidden_size(self) -> int:
        """Size of each layer."""

    @property
    def num_layers(self) -> int:
        """L."""

    @property
    def dropout(self) -> float:
        """The share of units that training drops."""

    @property
    def cell(self) -> CellKind:
        """The kind of cell in all layers."""

    @property
    def projection_size(self) -> int:
        """Only for the cell "lstm-projected"; otherwise 0."""


class TokenStack(nn.Module):
    """Computes the logits after each token. Runs one step, or a ragged chunk of steps, with explicit state."""

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
        """tokens: [B, T] int64; lengths: [B] int64 in 1..T, or None when every row is T long; states: the stack's,
        [L, B, size] each.

        Returns logits [B, T, V] (undefined past a row's length) and the next states.
        """
        outputs = self.dropout(self.embedding(tokens)).transpose(0, 1)  # [T, B, E]
        outputs, *following = self.stack(outputs, lengths, *states)
        return (self.projection(outputs).transpose(0, 1), *following)


class TokenReadout(nn.Module):
    """Computes the logits of the step that led to a state, without another step."""

    def __init__(self, model: TokenStack) -> None:
        super().__init__()
        self.projection = model.projection

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [L, B, size]. Returns logits [B, V]."""
        logits: Tensor = self.projection(hidden[-1:])  # [1, B, V], as in a step: a plain matrix product differs in bits
        return logits.squeeze(0)
