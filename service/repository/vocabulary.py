"""A vocabulary: token names to ids and back, and text to ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from service.errors import EmptySequenceError, TokenOutOfVocabularyError, UnknownTokenError
from service.repository.manifest import VocabularySpec

_ESCAPE = re.compile(r"\\([nrt\\]|u[0-9a-f]{4})")
_ESCAPED = re.compile(r"(?:[^\\]|\\([nrt\\]|u[0-9a-f]{4}))*")
_CHARACTERS = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


class Vocabulary:
    """Names by id. `owner` names it in messages, such as `the target vocabulary of g2p-en`.

    Immutable once made; safe to share between threads.
    """

    def __init__(
        self, names: Sequence[str], *, owner: str, tokenizer: str, lowercase: bool, unknown_id: int | None = None
    ) -> None:
        self.names = tuple(names)
        self.owner = owner
        self.tokenizer = tokenizer
        self._unknown_id = unknown_id
        self._ids = {name: index for index, name in enumerate(names)}
        self._by_characters = tokenizer == "characters"
        self._lowercase = lowercase

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def load(cls, path: Path, spec: VocabularySpec, *, owner: str) -> Vocabulary:
        """Reads one token a line. Raises ValueError when the file's lines are not those that `spec` promises."""
        text = path.read_text(encoding="utf-8")
        names = text.removesuffix("\n").split("\n") if text else []
        if spec.escaped:
            names = [_unescaped(name, path.name) for name in names]
        if len(names) != spec.size:
            raise ValueError(f"{path.name} has {len(names)} lines, but the manifest gives it {spec.size}")
        if len(set(names)) != len(names):
            raise ValueError(f"{path.name} names a token twice")
        return cls(names, owner=owner, tokenizer=spec.tokenizer, lowercase=spec.lowercase, unknown_id=spec.unknown_id)

    def check_ids(self, ids: Iterable[int], *, field: str) -> list[int]:
        """The ids as a list. Raises TokenOutOfVocabularyError naming the first that is none of this vocabulary's."""
        checked = list(ids)
        if checked and not 0 <= min(checked) <= max(checked) < len(self.names):
            at, wrong = next((i, t) for i, t in enumerate(checked) if not 0 <= t < len(self.names))
            raise TokenOutOfVocabularyError(
                f"{field}[{at}] = {wrong} is outside {self.owner} (0 to {len(self.names) - 1})", field=f"{field}[{at}]"
            )
        return checked

    def ids_of(self, names: Iterable[str], *, field: str) -> list[int]:
        """The ids of token names. Raises UnknownTokenError naming the first that the vocabulary lacks, unless it has a
        token that stands for those."""
        ids = []
        for at, name in enumerate(names):
            token_id = self._ids.get(name, self._unknown_id)
            if token_id is None:
                raise UnknownTokenError(f"{field}[{at}] = {name!r} is not in {self.owner}", field=f"{field}[{at}]")
            ids.append(token_id)
        return ids

    def ids_of_text(self, text: str, *, field: str) -> list[int]:
        """The ids of a text's tokens. Raises EmptySequenceError, or UnknownTokenError naming what is unknown."""
        folded = text.lower() if self._lowercase else text
        pieces = list(folded) if self._by_characters else folded.split()
        if not pieces:
            raise EmptySequenceError(f"{field} is empty: it must have 1 token or more", field=field)
        return self.ids_of(pieces, field=field)


def _unescaped(line: str, file: str) -> str:
    r"""A name of an escaped file: `\n`, `\r`, `\t`, `\\` and `\u` with four hexadecimal digits stand for a character.
    Raises ValueError for any other backslash."""
    if _ESCAPED.fullmatch(line) is None:
        raise ValueError(f"{file} has a line {line!r} that is not escaped as it should be")
    return _ESCAPE.sub(lambda match: _CHARACTERS.get(match[1]) or chr(int(match[1][1:], 16)), line)
