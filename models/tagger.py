"""The sequence tagger: one tag after each token, as it comes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from models.recurrent import CellKind
from models.token_stack import TokenStack


@dataclass(frozen=True, slots=True)
class TaggerConfig:
    """The sizes of a `Tagger`. Its tokens and its tags are vocabularies of their own."""

    vocabulary_size: int
    num_tags: int
    embedding_size: int
    hidden_size: int
    num_layers: int = 1
    dropout: float = 0.0
    cell: CellKind = "lstm"
    projection_size: int = 0

    def to_json(self) -> dict[str, int | float | str]:
        """The sizes by name, as a checkpoint keeps them."""
        return asdict(self)


class Tagger(TokenStack):
    """Logits over the tags: see `TokenStack`."""

    def __init__(self, config: TaggerConfig) -> None:
        super().__init__(config, config.num_tags)
        self.config = config
