"""Flags that several commands share, and checks of flags' values: unique names, vocabularies, token ids."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export.errors import ExportError
from export.foreign import forms
from export.vocabulary import Vocabulary

if TYPE_CHECKING:
    from export.bundle import BundleOptions


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for the bundle of another exporter's model. `common_options` reads them."""
    parser.add_argument("--name", type=forms.model_name, required=True, help="the model's name: a-z 0-9 . _ -")
    add_place(parser)
    parser.add_argument("--description", help="one line about it")
    parser.add_argument(
        "--sample-rate", type=forms.count, metavar="N", help="samples a second, where what it reads is sound: -1 to 1"
    )
    parser.add_argument(
        "--max-tokens", type=forms.count, default=256, metavar="N", help="steps generated when a request sets no limit"
    )
    parser.add_argument(
        "--max-bytes", type=forms.count, default=2_000_000_000, metavar="N", help="the most it may weigh"
    )


def add_place(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for where a bundle is written, its version, and whether it replaces an existing one."""
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the model repository")
    parser.add_argument("--version", type=forms.version, default=1, help="the bundle's version (default: 1)")
    parser.add_argument("--replace", action="store_true", help="take the place of the version that is there")


def common_options(
    parsed: argparse.Namespace, *, description: str, evaluation: Mapping[str, object] | None = None
) -> BundleOptions:
    """Returns the bundle's options from the flags of `add_common_flags`. description: the default."""
    return {
        "to": parsed.to,
        "name": parsed.name,
        "version": parsed.version,
        "description": parsed.description or description,
        "evaluation": evaluation or {},
        "sample_rate": parsed.sample_rate,
        "max_tokens": parsed.max_tokens,
        "max_bytes": parsed.max_bytes,
        "replace": parsed.replace,
    }


def once(given: list[tuple[str, Any]], flag: str) -> dict[str, Any]:
    """Returns the values by name. Raises ExportError for a name given twice, or for two states with one output."""
    names = [name for name, _ in given]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ExportError(f"{flag} names {twice[0]} twice")
    if flag == "--state" and len(set(told := dict(given).values())) < len(told):
        raise ExportError(
            f"--state gives several inputs one output, of {', '.join(sorted(set(told)))}: each has its own"
        )
    return dict(given)


def vocabulary_of(flag: str, path: Path | None, tokenizer: Literal["characters", "whitespace"]) -> Vocabulary | None:
    """Reads a vocabulary file; None without a path. Raises ExportError for a file that is no list of tokens."""
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
    """Returns a token id from a flag, checked; None if there is none.

    is_of_file: whether a vocabulary must be given. Raises ExportError for an id that the vocabulary does not have.
    """
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
