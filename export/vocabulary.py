"""A vocabulary as the bundle keeps it: one token a line, the line number from 0 being its id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from export.errors import ExportError
from service.repository.manifest import VocabularySpec
from service.repository.subwords import Subwords

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tokens: in the order of their ids; tokenizer, lowercase, unknown_id: how text becomes tokens, as `VocabularySpec`
    has it; subwords: the content of a model of SentencePiece, for the tokenizer `subword` alone."""

    tokens: tuple[str, ...]
    tokenizer: Literal["characters", "whitespace", "subword"]
    lowercase: bool = False
    unknown_id: int | None = None
    subwords: bytes | None = None

    @classmethod
    def of_subwords(cls, model: bytes) -> Vocabulary:
        """The pieces of a model of SentencePiece. Raises what SentencePiece raises for what is none."""
        return cls(tuple(Subwords(model).pieces), "subword", subwords=model)

    @property
    def escaped(self) -> bool:
        """Whether the file must be: some token cannot be a line of its own, or would be read as an escape."""
        return any(token.splitlines() != [token] or "\\" in token for token in self.tokens if token)

    def to_lines(self) -> bytes:
        """The text file, UTF-8. Raises ExportError for a token twice, or an empty one."""
        seen: dict[str, int] = {}
        for token_id, token in enumerate(self.tokens):
            if token in seen:
                raise ExportError(f"token {token!r} is in the vocabulary twice, as {seen[token]} and {token_id}")
            if not token:
                raise ExportError(f"token {token_id} is empty")
            seen[token] = token_id
        escaped = self.escaped
        return "".join(f"{_escape(token) if escaped else token}\n" for token in self.tokens).encode()

    def files(self, file: str) -> dict[str, bytes]:
        """What the bundle has of it, kept in `file`, by name. Raises as `to_lines` does."""
        return {file: self.to_lines()} | ({} if self.subwords is None else {_subwords_file(file): self.subwords})

    def spec(self, file: str) -> VocabularySpec:
        """What the manifest says of it, kept in `file`."""
        return VocabularySpec(
            file=file,
            size=len(self.tokens),
            tokenizer=self.tokenizer,
            subwords=None if self.subwords is None else _subwords_file(file),
            lowercase=self.lowercase,
            escaped=self.escaped,
            unknown_id=self.unknown_id,
        )


def _subwords_file(file: str) -> str:
    """The model's, beside the file of the tokens."""
    return f"{file.removesuffix('.txt')}.subwords"


def _escape(token: str) -> str:
    return "".join(
        _ESCAPES.get(character) or (character if character.isprintable() else f"\\u{ord(character):04x}")
        for character in token
    )
