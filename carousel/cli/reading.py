"""Converts text to tokens, and text or files with numbers to vectors."""

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
    """A file or standard input cannot be read, or does not fit the model. The text is one sentence."""


class CutOffError(InputError):
    """A file ends earlier than its header declares. Raised after all its data was read."""


def vectors(text: str) -> list[list[float]]:
    """Reads steps separated by spaces, their numbers by commas. Raises ValueError for anything else."""
    return [[float(number) for number in word.split(",")] for word in text.split()]


def shown(vector: Sequence[float]) -> str:
    """Writes a vector as `vectors` reads it."""
    return ",".join(f"{value:g}" for value in vector)


def visible(token: str) -> str:
    """Returns a token with visible white space."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "·"


def vectors_of(info: ModelInfo, text: str, hint: str) -> list[list[float]]:
    """Returns the vectors of a text. hint: the option or argument that had it. Raises typer.BadParameter."""
    try:
        return vectors(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{info.model} reads numbers, steps between spaces such as `1.5,2 1.6,3`: {error}", param_hint=hint
        ) from None


def source_of(info: ModelInfo, text: str | None) -> Source | None:
    """Returns a source in the model's form. Raises typer.BadParameter if numbers are expected and missing."""
    return text if text is None or not info.source_feature_size else vectors_of(info, text, "SOURCE")


def tokens_of(info: ModelInfo, text: str) -> list[str]:
    """Returns a text's tokens, as the model splits it."""
    return list(text) if info.tokenizer == "characters" else text.split()


def table(path: Path | None) -> list[list[float]] | None:
    """Returns the vectors of a CSV file, one step a line, or of a NumPy array [steps, numbers] whose name ends in .npy.
    Raises InputError that names the wrong line."""
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
    """Returns the lines of a text that are not empty, with their numbers, from 1. Raises InputError."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{named(path)} is not UTF-8 text: {error.reason}") from None
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def read_bytes(path: Path) -> bytes:
    """Reads a file, or standard input for `-`. Raises InputError."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def named(path: Path) -> str:
    """The name of a file in errors."""
    return "standard input" if str(path) == "-" else str(path)


def _array(path: Path) -> list[list[float]]:
    import numpy as np  # noqa: PLC0415  # comes with matplotlib

    try:
        found = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a NumPy array: {error}") from None
    if found.dtype.kind not in "fiub" or found.ndim != 2:
        raise InputError(f"{path} has shape {list(found.shape)} of {found.dtype}: expected [steps, numbers]")
    vectors: list[list[float]] = found.astype(np.float32).tolist()
    return vectors
