"""A vocabulary as the bundle keeps it: one token a line, the line number from 0 being its id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from export.errors import ExportError
from service.repository.manifest import VocabularySpec


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tokens: in the order of their ids; tokenizer, lowercase: how text becomes tokens, as `VocabularySpec` has it."""

    tokens: tuple[str, ...]
    tokenizer: Literal["characters", "whitespace"]
    lowercase: bool = False

    def to_lines(self) -> bytes:
        """The text file, UTF-8. Raises ExportError for a token twice, an empty one, or one that breaks a line."""
        seen: dict[str, int] = {}
        for token_id, token in enumerate(self.tokens):
            if token in seen:
                raise ExportError(f"token {token!r} is in the vocabulary twice, as {seen[token]} and {token_id}")
            if not token or token.splitlines() != [token]:
                raise ExportError(f"token {token_id}, {token!r}, cannot be a line of its own")
            seen[token] = token_id
        return "".join(f"{token}\n" for token in self.tokens).encode()

    def spec(self, file: str) -> VocabularySpec:
        """What the manifest says of it, kept in `file`."""
        return VocabularySpec(file=file, size=len(self.tokens), tokenizer=self.tokenizer, lowercase=self.lowercase)
