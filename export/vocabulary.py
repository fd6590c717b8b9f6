"""A vocabulary of a bundle: a file with one token a line, whose line number, from 0, is the token's id."""

from __future__ import annotations

from dataclasses import dataclass

from export.errors import ExportError
from service.repository.manifest import Tokenizer, VocabularySpec
from service.repository.subwords import Subwords

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary.

    tokens: in order of their ids. tokenizer, lowercase, unknown_id: how text becomes tokens, see `VocabularySpec`.
    subwords: the content of a SentencePiece model, for the tokenizer `subword` only. The constructor raises ExportError
    for a repeated or an empty token, and for fewer than 2 tokens.
    """

    tokens: tuple[str, ...]
    tokenizer: Tokenizer
    lowercase: bool = False
    unknown_id: int | None = None
    subwords: bytes | None = None

    def __post_init__(self) -> None:
        seen: dict[str, int] = {}
        for token_id, token in enumerate(self.tokens):
            if token in seen:
                raise ExportError(f"token {token!r} is in the vocabulary twice, as {seen[token]} and {token_id}")
            if not token:
                raise ExportError(f"token {token_id} is empty")
            seen[token] = token_id
        if len(self.tokens) < 2:
            raise ExportError(f"the vocabulary must have at least 2 tokens, but has {len(self.tokens)}")

    @classmethod
    def of_subwords(cls, model: bytes) -> Vocabulary:
        """Returns the pieces of a SentencePiece model. Raises SentencePiece's error when `model` is not one."""
        return cls(tuple(Subwords(model).pieces), "subword", subwords=model)

    @property
    def escaped(self) -> bool:
        """Whether the file must be escaped: some token contains a line break or a backslash."""
        return any(token.splitlines() != [token] or "\\" in token for token in self.tokens)

    def to_lines(self) -> bytes:
        """Returns the text file, UTF-8."""
        escaped = self.escaped
        return "".join(f"{_escape(token) if escaped else token}\n" for token in self.tokens).encode()

    def files(self, file: str) -> dict[str, bytes]:
        """Returns the bundle's files of this vocabulary by name. file: of the tokens."""
        return {file: self.to_lines()} | ({} if self.subwords is None else {_subwords_file(file): self.subwords})

    def spec(self, file: str) -> VocabularySpec:
        """Returns the manifest's entry. file: of the tokens."""
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
    """Returns the name of the SentencePiece model's file, next to the tokens' file."""
    return f"{file.removesuffix('.txt')}.subwords"


def _escape(token: str) -> str:
    return "".join(
        _ESCAPES.get(character) or (character if character.isprintable() else f"\\u{ord(character):04x}")
        for character in token
    )
