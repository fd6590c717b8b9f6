"""The sequence tagger: outputs one tag after each token, as the tokens arrive."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from models.recurrent import CellKind
from models.token_stack import TokenStack


@dataclass(frozen=True, slots=True)
class TaggerConfig:
    """The sizes of a `Tagger`. Tokens and tags have separate vocabularies."""

    vocabulary_size: int
    num_tags: int
    embedding_size: int
    hidden_size: int
    num_layers: int = 1
    dropout: float = 0.0
    cell: CellKind = "lstm"
    projection_size: int = 0

    def to_json(self) -> dict[str, int | float | str]:
        """Returns the sizes by name, as stored in a checkpoint."""
        return asdict(self)


class Tagger(TokenStack):
    """Computes logits over the tags: see `TokenStack`."""

    def __init__(self, config: TaggerConfig) -> None:
        super().__init__(config, config.num_tags)
        self.config = config
