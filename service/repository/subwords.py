"""Subwords: text split into pieces of words by a SentencePiece model (Kudo and Richardson 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from sentencepiece import SentencePieceProcessor

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's character for a space."""
_UNKNOWN = " \N{DOUBLE QUESTION MARK} "
"""SentencePiece's text for the unknown piece."""


class Subwords:
    """A SentencePiece model. Immutable; safe to share between threads."""

    def __init__(self, model: bytes) -> None:
        self._processor = SentencePieceProcessor(model_proto=model)

    @classmethod
    def load(cls, path: Path, names: Sequence[str]) -> Subwords:
        """Reads a model. names: the expected pieces, by id. Raises ValueError when the file is not a SentencePiece
        model or has other pieces, and OSError when it cannot be read."""
        content = path.read_bytes()
        try:
            subwords = cls(content)
            pieces = subwords.pieces
        except Exception as error:  # SentencePiece raises RuntimeError and others
            raise ValueError(f"{path.name} is not a SentencePiece model: {error}") from error
        if pieces != list(names):
            raise ValueError(
                f"the {len(pieces)} pieces of {path.name} differ from the {len(names)} tokens of the vocabulary"
            )
        return subwords

    @property
    def pieces(self) -> list[str]:
        """The model's pieces, by id."""
        return [self._processor.id_to_piece(index) for index in range(self._processor.get_piece_size())]

    @cached_property
    def spelt(self) -> tuple[bytes, ...]:
        """The UTF-8 text that each piece adds, by id. A piece that begins a word begins with a space, a byte piece is
        its byte, and control pieces are empty."""
        processor, found = self._processor, []
        for index, piece in enumerate(self.pieces):
            if processor.is_control(index) or processor.is_unused(index):
                found.append(b"")
            elif processor.is_byte(index):
                found.append(bytes([int(piece.removeprefix("<0x").removesuffix(">"), 16)]))
            elif processor.is_unknown(index):
                found.append(_UNKNOWN.encode())
            else:
                found.append(piece.replace(_SPACE, " ").encode())
        return tuple(found)

    @cached_property
    def begins_word(self) -> tuple[bool, ...]:
        """By id, whether a piece begins a word."""
        return tuple(spelt.startswith(b" ") for spelt in self.spelt)

    def cut(self, text: str) -> list[str]:
        """Returns the likeliest pieces of a text. Text that no piece covers is returned unchanged, or as byte pieces if
        the model has them."""
        found: list[str] = self._processor.encode(text, out_type=str)
        return found
