"""Converts typed text to tokens, and typed numbers to vectors."""

from __future__ import annotations

import csv
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


def source_of(info: ModelInfo, text: str | None) -> Source | None:
    """A source as its model reads it. Raises typer.BadParameter where numbers are expected."""
    if text is None or not info.source_feature_size:
        return text
    try:
        return vectors(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{info.model} reads numbers, steps between spaces such as `1.5,2 1.6,3`: {error}", param_hint="SOURCE"
        ) from None


def tokens_of(info: ModelInfo, text: str) -> list[str]:
    """A text's tokens, as the model splits it."""
    return list(text) if info.tokenizer == "characters" else text.split()


def table(path: Path | None) -> list[list[float]] | None:
    """The vectors of a CSV file, a step a line, or of an array of NumPy's, [steps, numbers]. Raises typer.BadParameter
    for what are no numbers, or cannot be read."""
    if path is None:
        return None
    try:
        if path.suffix.lower() == ".npy":
            return _array(path)
        with path.open(newline="") as file:
            return [[float(cell) for cell in row] for row in csv.reader(file) if row]
    except UnicodeDecodeError:
        told = "it is neither text, numbers separated by commas, nor an array of NumPy's, whose name ends in .npy"
    except OSError as error:
        told = error.strerror or str(error)
    except (ValueError, EOFError) as error:
        told = str(error)
    raise typer.BadParameter(f"{path}: {told}", param_hint="--features")


def _array(path: Path) -> list[list[float]]:
    import numpy as np  # noqa: PLC0415  # comes with matplotlib

    found = np.load(path, allow_pickle=False)
    if found.dtype.kind not in "fiub" or found.ndim != 2:
        raise ValueError(f"it has shape {list(found.shape)} of {found.dtype}, and [steps, numbers] is read")
    vectors: list[list[float]] = found.astype(np.float32).tolist()
    return vectors
