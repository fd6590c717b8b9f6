"""What tests of exports share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest


@pytest.fixture(scope="session", autouse=True)
def operators() -> Iterator[None]:
    """PyTorch's table of ONNX operators, which nothing here changes, is made once, and not anew for each graph."""
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    table = registration.ONNXRegistry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "from_torchlib", staticmethod(cache(table.from_torchlib)))
        yield
