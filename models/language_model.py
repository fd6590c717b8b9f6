"""The language model: predicts the next token after each token."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from models.recurrent import CellKind
from models.token_stack import TokenStack


@dataclass(frozen=True, slots=True)
class LanguageModelConfig:
    """The sizes of a `LanguageModel`. projection_size: only for the cell "lstm-projected"."""

    vocabulary_size: int
    embedding_size: int
    hidden_size: int
    num_layers: int = 1
    dropout: float = 0.0
    cell: CellKind = "lstm"
    projection_size: int = 0

    def to_json(self) -> dict[str, int | float | str]:
        """Returns the sizes by name, as stored in a checkpoint."""
        return asdict(self)


class LanguageModel(TokenStack):
    """Computes logits over the vocabulary that it reads: see `TokenStack`."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__(config, config.vocabulary_size)
        self.config = config


def random_language_model(config: LanguageModelConfig, *, seed: int) -> LanguageModel:
    """Makes an untrained model, with every weight drawn uniformly within +-1/sqrt(H), as PyTorch's LSTM does."""
    model = LanguageModel(config)
    generator = torch.Generator().manual_seed(seed)
    bound = 1.0 / math.sqrt(config.hidden_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return model.eval()
