"""What flags give, beyond their own form: names told once, vocabularies, ids of their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from export.errors import ExportError
from export.vocabulary import Vocabulary


def once(given: list[tuple[str, Any]], flag: str) -> dict[str, Any]:
    """What is told by name. Raises ExportError for a name that is told twice."""
    names = [name for name, _ in given]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ExportError(f"{flag} names {twice[0]} twice")
    if flag == "--state" and len(set(told := dict(given).values())) < len(told):
        raise ExportError(
            f"--state gives several inputs one output, of {', '.join(sorted(set(told)))}: each has its own"
        )
    return dict(given)


def vocabulary_of(flag: str, path: Path | None, tokenizer: Literal["characters", "whitespace"]) -> Vocabulary | None:
    """Raises ExportError for a file that is no list of tokens."""
    if path is None:
        return None
    try:
        names = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        vocabulary = Vocabulary(tuple(names), tokenizer)
        vocabulary.to_lines()
    except OSError as error:
        raise ExportError(f"{flag} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"{flag} {path} is no text in UTF-8: it must have a token a line") from error
    except ExportError as error:
        raise ExportError(f"{flag} {path}: {error}. It must have a token a line, each once") from error
    return vocabulary


def token_of(flag: str, token_id: int | None, vocabulary: Vocabulary | None, *, is_of_file: bool = True) -> int | None:
    """An id of the vocabulary. is_of_file: whether the vocabulary must be given. Raises ExportError for one that it has
    not."""
    if token_id is None:
        return None
    if not is_of_file and token_id >= 0:
        return token_id
    if vocabulary is None:
        raise ExportError(f"{flag} {token_id}: it is a token of --vocabulary FILE, which is not given")
    if not 0 <= token_id < len(vocabulary.tokens):
        raise ExportError(
            f"{flag} {token_id}: the vocabulary has {len(vocabulary.tokens)} tokens, whose ids are counted from 0"
        )
    return token_id
