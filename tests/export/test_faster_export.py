"""The faster export changes no graph, and leaves PyTorch as it was."""

from __future__ import annotations

from contextlib import nullcontext, suppress

import pytest

pytest.importorskip("torch")

import torch
from torch._export import utils
from torch.onnx._internal.exporter._registration import ONNXRegistry

from export.faster_export import faster_export

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # PyTorch uses what it will remove


def functions() -> tuple[object, object]:
    return vars(ONNXRegistry)["from_torchlib"], vars(utils).get("_materialize_cpp_cia_ops")


def exported(*, faster: bool = True) -> bytes:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Softmax(-1)).eval()
    with faster_export() if faster else nullcontext():
        program = torch.onnx.export(module, (torch.zeros(2, 3),), dynamo=True, verbose=False)
    assert program is not None
    graph: bytes = program.model_proto.graph.SerializeToString(deterministic=True)
    return graph


def test_the_graph_is_the_same() -> None:
    assert exported() == exported(faster=False)


def test_pytorch_is_left_as_it_was_also_after_an_error() -> None:
    before = functions()
    with suppress(KeyboardInterrupt), faster_export():
        assert all(now is not then for now, then in zip(functions(), before, strict=True))
        raise KeyboardInterrupt
    assert functions() == before


def test_a_pytorch_without_these_functions_exports_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = exported(faster=False)
    monkeypatch.delattr("torch._export.utils._materialize_cpp_cia_ops", raising=False)
    with faster_export():
        assert not hasattr(utils, "_materialize_cpp_cia_ops")
    monkeypatch.undo()
    assert exported() == expected
