"""The fixture that all tests of exports share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest


@pytest.fixture(scope="session", autouse=True)
def operators() -> Iterator[None]:
    """Makes PyTorch's tables of operators once, and not again for each graph. No test changes them."""
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    found = pytest.importorskip("torch._export.utils")
    table = registration.ONNXRegistry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "from_torchlib", staticmethod(cache(table.from_torchlib)))
        patch.setattr(found, "_materialize_cpp_cia_ops", cache(found._materialize_cpp_cia_ops))  # noqa: SLF001
        yield
