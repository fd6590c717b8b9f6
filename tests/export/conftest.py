"""The fixture that all tests of exports share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest


@pytest.fixture(scope="session", autouse=True)
def operators() -> Iterator[None]:
    """Makes PyTorch's table of ONNX operators once, and not again for each graph. No test changes it."""
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    table = registration.ONNXRegistry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "from_torchlib", staticmethod(cache(table.from_torchlib)))
        yield
