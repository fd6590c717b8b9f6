"""A vocabulary: converts token names to ids and back, and text to ids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from service.errors import (
    EmptySequenceError,
    SequenceTooLongError,
    TokenOutOfVocabularyError,
    UnknownTokenError,
    quoted,
)
from service.repository.manifest import VocabularySpec
from service.repository.subwords import Subwords

_ESCAPE = re.compile(r"\\([nrt\\]|u[0-9a-f]{4})")
_ESCAPED = re.compile(r"(?:[^\\]|\\([nrt\\]|u[0-9a-f]{4}))*")
_COMPOSED = 4
"""Most characters that normalisation combines into one."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
"""Shown in place of a byte that forms no character."""
_CHARACTERS = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


class Vocabulary:
    """Token names by id. `owner` names the vocabulary in messages, such as `the target vocabulary of g2p-en`.

    Immutable, except for `derived`; safe to share between threads.
    """

    derived: dict[str, Any]
    """Tables that other modules compute from the names, each under its own key. They are stored here to live as long as
    the vocabulary: a cache in such a module would keep the vocabularies of unloaded versions forever."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        owner: str,
        tokenizer: str,
        lowercase: bool,
        unknown_id: int | None = None,
        subwords: Subwords | None = None,
    ) -> None:
        self.names = tuple(names)
        self.owner = owner
        self.tokenizer = tokenizer
        self._unknown_id = unknown_id
        self.subwords = subwords
        self._ids = {name: index for index, name in enumerate(names)}
        self._by_characters = tokenizer == "characters"
        self._lowercase = lowercase
        self._longest = max(map(len, names), default=0)
        self.derived = {}

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def load(cls, path: Path, spec: VocabularySpec, *, owner: str) -> Vocabulary:
        """Reads a file with one token a line, and the SentencePiece model if `spec` names one.

        Raises ValueError when the lines do not match `spec` or the model's pieces, and OSError when a file cannot be
        read.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name} is not UTF-8 text: {error.reason} at byte {error.start}") from error
        names = text.removesuffix("\n").split("\n") if text else []
        if spec.escaped:
            names = [_unescaped(name, path.name) for name in names]
        if len(names) != spec.size:
            raise ValueError(f"{path.name} has {len(names)} lines, but the manifest says {spec.size}")
        if len(set(names)) != len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise ValueError(f"{path.name} has the token {quoted(twice)} twice")
        subwords = None if spec.subwords is None else Subwords.load(path.parent / spec.subwords, names)
        found = cls(
            names,
            owner=owner,
            tokenizer=spec.tokenizer,
            lowercase=spec.lowercase,
            unknown_id=spec.unknown_id,
            subwords=subwords,
        )
        _ = found.max_token_bytes  # computed now, since it takes 20 ms for thousands of pieces and a session would wait
        return found

    @property
    def max_token_bytes(self) -> int:
        """Most bytes that a `Token` takes inside another message on the wire (id, name and log-probability), plus, for
        subwords, the text that it adds."""
        found: int | None = self.derived.get("max_token_bytes")
        if found is None:
            name = max((len(name.encode()) for name in self.names), default=0)
            inner = _varint(len(self.names)) + 1 + _varint(name) + 1 + name + 5
            text = 0 if self.subwords is None else max(len(_REPLACEMENT), *map(len, self.subwords.spelt))
            found = self.derived["max_token_bytes"] = 1 + _varint(inner) + inner + text
        return found

    def check_ids(self, ids: Iterable[int], *, field: str, first: int = 0) -> list[int]:
        """Returns the ids as a list. first: the index in the field of the first id. Raises TokenOutOfVocabularyError
        for an id outside this vocabulary."""
        checked = list(ids)
        if checked and not 0 <= min(checked) <= max(checked) < len(self.names):
            at, wrong = next((i, t) for i, t in enumerate(checked, first) if not 0 <= t < len(self.names))
            raise TokenOutOfVocabularyError(
                f"{field}[{at}] = {wrong} is outside {self.owner} (0 to {len(self.names) - 1})", field=f"{field}[{at}]"
            )
        return checked

    def ids_of(self, names: Iterable[str], *, field: str, is_exact: bool = False, is_text: bool = False) -> list[int]:
        """Returns the ids of token names. is_text: the names are the words of a text.

        A name that the vocabulary lacks gets the id of the unknown token. Raises UnknownTokenError naming the first
        such name if there is no unknown token, or if is_exact, where only its own name stands for the unknown token.
        """
        ids = []
        for at, name in enumerate(names):
            token_id = self._ids.get(name, None if is_exact else self._unknown_id)
            if token_id is None:
                hint = ": separate tokens with spaces, not commas" if is_text and self._has_commas(name) else ""
                raise UnknownTokenError(
                    f"{field}[{at}] = {quoted(name)} is not in {self.owner}{hint}", field=f"{field}[{at}]"
                )
            ids.append(token_id)
        return ids

    def ids_of_text(
        self, text: str, *, field: str, limit: int | None = None, setting: str = "", whole: str = ""
    ) -> list[int]:
        """Returns the ids of a text's tokens.

        limit: most tokens that the text may have, named `setting` in the message; None: no limit. whole: the field to
        name when the text is over the limit; empty: `field`. Takes time for `limit` tokens, however long the text is.
        Raises EmptySequenceError, SequenceTooLongError, or UnknownTokenError naming the unknown token.
        """
        if self._by_characters:
            if limit is not None and len(text) > limit:  # lower-casing never reduces the number of characters
                raise too_many(f"{len(text)} tokens", limit, setting, whole or field)
            return self._ids_of_pieces(list(text.lower() if self._lowercase else text), field)
        if self.subwords is not None:
            words = text.split() if limit is None else text.split(None, limit)
            if limit is not None and (len(words) > limit or sum(map(len, words)) > limit * self._longest * _COMPOSED):
                raise too_many(f"more than {limit} tokens", limit, setting, whole or field)
            pieces = self.subwords.cut(text.lower() if self._lowercase else text)
            if limit is not None and len(pieces) > limit:
                raise too_many(f"{len(pieces)} tokens", limit, setting, whole or field)
            return self._ids_of_pieces(pieces, field)
        pieces = text.split() if limit is None else text.split(None, limit)
        if limit is not None and len(pieces) > limit:
            raise too_many(f"more than {limit} tokens", limit, setting, whole or field)
        if self._lowercase:
            # a piece longer than every name is unknown in any case, so lower-casing it would be wasted
            pieces = [piece.lower() if len(piece) <= self._longest else piece for piece in pieces]
        return self._ids_of_pieces(pieces, field)

    def _has_commas(self, word: str) -> bool:
        """Whether a word begins with tokens that are separated or followed by commas, such as `3,4` and `3,`."""
        first, comma, rest = word[: 2 * self._longest + 2].partition(",")
        second = rest.partition(",")[0]
        return bool(comma) and first in self._ids and (not second or second in self._ids)

    def _ids_of_pieces(self, pieces: list[str], field: str) -> list[int]:
        if not pieces:
            raise EmptySequenceError(f"{field} is empty: it must have 1 token or more", field=field)
        return self.ids_of(pieces, field=field, is_text=not self._by_characters)


def too_many(count: str, limit: int, setting: str, field: str) -> SequenceTooLongError:
    """Returns the error for a sequence of more than `limit` tokens. count: the number of tokens, in words; setting: the
    name of the limit; empty: none."""
    end, facts = (f" ({setting})", {setting: limit}) if setting else ("", {})
    return SequenceTooLongError(f"{field} has {count}, the limit is {limit}{end}", field=field, limit=limit, **facts)


def _varint(number: int) -> int:
    """Returns the number of bytes of a varint."""
    return max(1, (number.bit_length() + 6) // 7)


def _unescaped(line: str, file: str) -> str:
    r"""Decodes a line of an escaped file: `\n`, `\r`, `\t`, `\\` and `\u` with four hexadecimal digits are escapes.
    Raises ValueError for any other backslash."""
    if _ESCAPED.fullmatch(line) is None:
        raise ValueError(
            f"{file} has a line {quoted(line)} with an invalid escape: expected \\n, \\r, \\t, \\\\, or \\u and four"
            " hexadecimal digits"
        )
    return _ESCAPE.sub(lambda match: _CHARACTERS.get(match[1]) or chr(int(match[1][1:], 16)), line)
