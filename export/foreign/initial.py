"""First values of states that do not begin with zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.errors import ExportError, first_line
from export.foreign.axes import Hints, Tensor, check_numbers
from export.proofs.runners import Array


def initial_values(text: str) -> Array:
    """Parses the value of `--initial`: numbers separated by commas, or a NumPy file (.npy). Raises ExportError."""
    if not text.endswith(".npy"):
        try:
            return np.array([float(part) for part in text.split(",")])
        except ValueError:
            raise ExportError(f"--initial: {text!r:.60} must be numbers separated by commas, or a .npy file") from None
    if not Path(text).is_file():
        raise ExportError(f"--initial: {text} does not exist")
    try:
        values = np.load(text, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ExportError(f"--initial: {text} is not a NumPy array: {first_line(error)}") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        raise ExportError(f"--initial: {text} must be an array of numbers")
    return values


def first_value(tensor: Tensor, shape: tuple[int, ...], hints: Hints) -> Array | None:
    """Returns a state's first value, for 1 row; None for zeros. Raises ExportError for values that do not fit it."""
    values = hints.initial.get(tensor.name)
    if values is None:
        return None
    if values.size not in (1, int(np.prod(shape))):
        raise ExportError(
            f"--initial {tensor.name}: it has {values.size} numbers, but {tensor} needs {int(np.prod(shape))} a row"
        )
    check_numbers("--initial", tensor, values.astype(np.float64).ravel().tolist())
    converted = values.astype(tensor.dtype)
    return np.broadcast_to(converted.reshape(shape if values.size > 1 else (1,) * len(shape)), shape).copy()
