"""The plot of a training run."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from models.curves import plot_curves
from models.training import Epoch


def test_curves_are_drawn(tmp_path: Path) -> None:
    """A history is drawn as a PNG."""
    history = [Epoch(0, 2.0, 0.5), Epoch(1, 1.0, 0.3)]
    plot_curves(history, tmp_path / "curves.png", error_name="validation error")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
