"""Flags that several commands share, and checks of flags' values: unique names, vocabularies, token ids.

The flags of a command are a dataclass. typer makes a flag of each field, parses the command line and returns an
instance; nothing else makes one. Annotations are not postponed (`from __future__ import annotations`), because typer
would look up the types of inherited fields in the wrong module.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typer import Option

from export.errors import ExportError
from export.foreign import forms
from export.vocabulary import Vocabulary

if TYPE_CHECKING:
    from export.bundle import BundleOptions

NAME: Any = Option(..., parser=forms.model_name, metavar="NAME", help="The model's name: a-z 0-9 . _ -")
TO: Any = Option(..., metavar="FOLDER", help="The model repository.")
REPLACE: Any = Option(False, "--replace", help="Replace an existing version.")
Tokenizer = Literal["characters", "whitespace"]


@dataclass(kw_only=True)
class PlaceFlags:
    """The flags for where a bundle is written."""

    to: Path = TO
    version: int = Option(1, min=1, max=2**31 - 1, metavar="N", help="The bundle's version.")
    replace: bool = REPLACE


@dataclass(kw_only=True)
class BundleFlags(PlaceFlags):
    """The flags for the bundle of another exporter's model."""

    name: str = NAME
    description: str | None = Option(None, metavar="TEXT", help="One line about the model.")
    sample_rate: int | None = Option(
        None, min=1, metavar="N", help="Samples a second, for a model that reads sound as floats from -1 to 1."
    )
    max_tokens: int = Option(256, min=1, metavar="N", help="Steps generated when a request sets no limit.")
    max_bytes: int = Option(2000000000, min=1, metavar="N", help="The bundle's largest size in bytes.")

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self.to / self.name / str(self.version)

    def options(self, *, description: str, evaluation: Mapping[str, object] | None = None) -> "BundleOptions":
        """Returns the bundle's options. description: the default."""
        return {
            "to": self.to,
            "name": self.name,
            "version": self.version,
            "description": self.description or description,
            "evaluation": evaluation or {},
            "sample_rate": self.sample_rate,
            "max_tokens": self.max_tokens,
            "max_bytes": self.max_bytes,
            "replace": self.replace,
        }


def once(given: list[tuple[str, Any]], flag: str) -> dict[str, Any]:
    """Returns the values by name. Raises ExportError for a name given twice, or for two states with one output."""
    names = [name for name, _ in given]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ExportError(f"{flag} names {twice[0]} twice")
    if flag == "--state" and len(set(pairs := dict(given).values())) < len(pairs):
        raise ExportError(
            f"--state gives several inputs one output ({', '.join(sorted(set(pairs)))}): each state needs its own"
            " output"
        )
    return dict(given)


def vocabulary_of(flag: str, path: Path | None, tokenizer: Tokenizer) -> Vocabulary | None:
    """Reads a vocabulary file; None without a path. Raises ExportError for a file that is no list of tokens."""
    if path is None:
        return None
    try:
        names = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return Vocabulary(tuple(names), tokenizer)
    except OSError as error:
        raise ExportError(f"{flag} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"{flag} {path} is not UTF-8 text: write one token a line") from error
    except ExportError as error:
        raise ExportError(f"{flag} {path}: {error}. Write one token a line, each once") from error


def token_of(flag: str, token_id: int | None, vocabulary: Vocabulary | None, *, is_of_file: bool = True) -> int | None:
    """Returns a token id from a flag, checked; None if there is none.

    is_of_file: whether a vocabulary must be given. Raises ExportError for an id that the vocabulary does not have.
    """
    if token_id is None:
        return None
    if not is_of_file and token_id >= 0:
        return token_id
    if vocabulary is None:
        raise ExportError(f"{flag} {token_id}: a token id needs --vocabulary FILE")
    if not 0 <= token_id < len(vocabulary.tokens):
        raise ExportError(
            f"{flag} {token_id} is outside the vocabulary of {len(vocabulary.tokens)} tokens (0 to"
            f" {len(vocabulary.tokens) - 1})"
        )
    return token_id
