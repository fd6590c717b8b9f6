"""The LSTM language model: an embedding, a stack of LSTM layers, a projection to the vocabulary.

Shapes: `B` batch, `T` time, `L` layers, `H` hidden, `V` vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import LSTMLayer


@dataclass(frozen=True, slots=True)
class LanguageModelConfig:
    """The sizes of a `LanguageModel`."""

    vocabulary_size: int
    embedding_size: int
    hidden_size: int
    num_layers: int = 1
    dropout: float = 0.0


class LanguageModel(nn.Module):
    """What comes next after each token; one step or a ragged chunk of them, from explicit state to explicit state."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            LSTMLayer(config.embedding_size if layer == 0 else config.hidden_size, config.hidden_size)
            for layer in range(config.num_layers)
        )
        self.projection = nn.Linear(config.hidden_size, config.vocabulary_size)

    def forward(
        self, tokens: Tensor, lengths: Tensor | None, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """tokens: [B, T] int64; lengths: [B] int64 in 1..T, or None when every row is T long; hidden, cell: [L, B, H].

        Returns logits [B, T, V] (meaningless past a row's length), next hidden and next cell, [L, B, H].
        """
        outputs = self.dropout(self.embedding(tokens)).transpose(0, 1)  # [T, B, E]
        next_hidden, next_cell = [], []
        for index, layer in enumerate(self.layers):
            outputs, h, c = layer(outputs, lengths, hidden[index : index + 1], cell[index : index + 1])
            outputs = self.dropout(outputs)
            next_hidden.append(h)
            next_cell.append(c)
        logits = self.projection(outputs).transpose(0, 1)  # [B, T, V]
        return logits, torch.cat(next_hidden), torch.cat(next_cell)


class LanguageModelReadout(nn.Module):
    """What comes after a state as it is: the logits of the step that led to it, without a step."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.projection = model.projection

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [L, B, H]. Returns logits [B, V]."""
        logits: Tensor = self.projection(hidden[-1:])  # [1, B, V], as in a step: a plain matrix gets another product
        return logits.squeeze(0)


def random_language_model(config: LanguageModelConfig, *, seed: int) -> LanguageModel:
    """An untrained model, every weight drawn from the uniform distribution of PyTorch's LSTM, +-1/sqrt(H)."""
    model = LanguageModel(config)
    generator = torch.Generator().manual_seed(seed)
    bound = 1.0 / math.sqrt(config.hidden_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return model.eval()
