"""Reads and checks the files of a training run: checkpoint, evaluation, curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from torch import nn

from export.errors import ExportError
from service.repository.manifest import sha256_of

CURVES_FILE = "curves.png"

Model = TypeVar("Model", bound=nn.Module)
Evaluation = TypeVar("Evaluation", bound=BaseModel)


def load_model(checkpoint: Path, load: Callable[[Path], Model], name: str) -> Model:
    """Returns a checkpoint's model, loaded by its recipe. Raises ExportError when the file is no checkpoint of it."""
    try:
        return load(checkpoint)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{checkpoint} cannot be read as a checkpoint: {error}") from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ExportError(f"{checkpoint} is not a best.safetensors of {name}: {reason}") from error


def load_evaluation(checkpoint: Path, kind: type[Evaluation], recipe: str) -> Evaluation:
    """Returns the `evaluation.json` in a checkpoint's folder, which must be of this checkpoint.

    recipe: the module that makes it. Raises ExportError that says how to make it.
    """
    path = checkpoint.parent / "evaluation.json"
    make_it = f"make it with: python -m {recipe} evaluate {checkpoint}"
    try:
        evaluation = kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ExportError(f"{path} is missing; {make_it}") from error
    except ValidationError as error:
        raise ExportError(f"{path} is not what the recipe writes ({error}); {make_it}") from error
    if getattr(evaluation, "checkpoint_sha256", None) != sha256_of(checkpoint):
        raise ExportError(f"{path} was made from another checkpoint; {make_it}")
    return evaluation


def curves_of(checkpoint: Path) -> dict[str, bytes]:
    """Returns the picture of the run's curves, by its file name; empty if there is none."""
    path = checkpoint.parent / CURVES_FILE
    return {CURVES_FILE: path.read_bytes()} if path.exists() else {}
