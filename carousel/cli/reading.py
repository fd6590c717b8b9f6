"""Converts typed text to tokens, and typed numbers to vectors."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from carousel._requests import Source
from carousel.values import ModelInfo


class InputError(Exception):
    """A file, or standard input, cannot be read, or has not what the model reads. The text is one sentence."""


class CutOffError(InputError):
    """A file ends before the end that its header declares. It is raised after all that the file has."""


def vectors(text: str) -> list[list[float]]:
    """Steps between spaces, the numbers of each between commas. Raises ValueError for anything else."""
    return [[float(number) for number in word.split(",")] for word in text.split()]


def shown(vector: Sequence[float]) -> str:
    """A vector as `vectors` reads it."""
    return ",".join(f"{value:g}" for value in vector)


def visible(token: str) -> str:
    """A token with its white space made visible."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "·"


def vectors_of(info: ModelInfo, text: str, hint: str) -> list[list[float]]:
    """The vectors of a text. hint: where it was given. Raises typer.BadParameter for anything else."""
    try:
        return vectors(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{info.model} reads numbers, steps between spaces such as `1.5,2 1.6,3`: {error}", param_hint=hint
        ) from None


def source_of(info: ModelInfo, text: str | None) -> Source | None:
    """A source as its model reads it. Raises typer.BadParameter where numbers are expected."""
    return text if text is None or not info.source_feature_size else vectors_of(info, text, "SOURCE")


def tokens_of(info: ModelInfo, text: str) -> list[str]:
    """A text's tokens, as the model splits it."""
    return list(text) if info.tokenizer == "characters" else text.split()


def table(path: Path | None) -> list[list[float]] | None:
    """The vectors of a CSV file, a step a line, or of an array of NumPy's, [steps, numbers], whose name ends in .npy.
    Raises InputError, which names the line that is wrong."""
    if path is None:
        return None
    if path.suffix.lower() == ".npy":
        return _array(path)
    found = []
    for number, line in lines(path):
        try:
            found += [[float(cell) for cell in row] for row in csv.reader([line])]
        except (ValueError, csv.Error) as error:
            raise InputError(f"{named(path)}, line {number}: {error}") from None
    return found


def lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text that are not empty, and their numbers, from 1. Raises InputError."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{named(path)} is not UTF-8 text: {error.reason}") from None
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def read_bytes(path: Path) -> bytes:
    """A file, or for `-` standard input. Raises InputError."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def named(path: Path) -> str:
    """How a file is called in errors."""
    return "standard input" if str(path) == "-" else str(path)


def _array(path: Path) -> list[list[float]]:
    import numpy as np  # noqa: PLC0415  # comes with matplotlib

    try:
        found = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a NumPy array: {error}") from None
    if found.dtype.kind not in "fiub" or found.ndim != 2:
        raise InputError(f"{path} has shape {list(found.shape)} of {found.dtype}, and [steps, numbers] is read")
    vectors: list[list[float]] = found.astype(np.float32).tolist()
    return vectors
