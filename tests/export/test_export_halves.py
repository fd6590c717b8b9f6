"""Files that compute in 16-bit floats are exported, and served with the file's own bits."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

from export.__main__ import main
from service.repository.bundle import load_bundle


class Half(nn.Module):
    """A recurrent layer, and a product with transposed weights after it."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(3, 8, batch_first=True)
        self.last = nn.Linear(8, 2)

    def forward(self, inputs: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        is_lstm = isinstance(self.rnn, nn.LSTM)
        outputs, following = self.rnn(inputs, states if is_lstm else states[0])
        return (self.last(outputs), *(following if is_lstm else (following,)))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_layer_of_16_bit_floats_is_exported(
    kind: type[nn.LSTM | nn.GRU], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["x", "h", "c"][: 3 if kind is nn.LSTM else 2]
    states = [torch.zeros(1, 1, 8).half() for _ in names[1:]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the exporter that made most files
        torch.onnx.export(
            Half(kind).half().eval(),
            (torch.zeros(1, 1, 3).half(), *states),
            str(tmp_path / "half.onnx"),
            input_names=names,
            output_names=["y", "hn", "cn"][: len(names)],
            dynamic_axes={"x": {0: "batch", 1: "time"}, "h": {1: "batch"}, "c": {1: "batch"}},
            dynamo=False,
        )
    assert main(["onnx", str(tmp_path / "half.onnx"), "--name", "half", "--to", str(tmp_path / "to")]) == 0
    manifest = load_bundle(tmp_path / "to" / "half" / "1").manifest
    assert {state.input.dtype for state in manifest.states} == {"float16"}
    assert set(manifest.parity.max_abs_error.values()) == {0.0}
    said = capsys.readouterr().out
    assert f"note           it has no trace graph: its {kind.__name__} " in said
    assert "computes in float16, but a trace graph computes in float32" in said
