"""Recurrent layers that users have modified are exported as PyTorch's plain ones, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from export.errors import ExportError
from export.exportable import WithLengths
from export.plain_layers import plain
from export.torch_model import TorchModel, write_module
from tests.reference import ReferenceSession

SIZE, FEATURES = 10, 3


class Gated(nn.LSTM):
    """A user's variant, with its own `forward`."""

    def forward(self, inputs: Tensor, states: Any = None) -> Any:  # type: ignore[override]  # as users do
        outputs, carried = super().forward(inputs, states)
        return torch.tanh(outputs), carried


class Renamed(nn.LSTM):
    """A subclass that differs only in its name."""


class OverVectors(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs, (hidden, cell) = self.rnn(inputs, (hidden, cell))
        return outputs, hidden, cell


def over_vectors(rnn: nn.Module) -> TorchModel:
    return TorchModel(
        OverVectors(rnn),
        states={"hidden": (1, "batch", SIZE), "cell": (1, "batch", SIZE)},
        feature_size=FEATURES,
        value_size=SIZE,
    )


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.*norm:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        lambda rnn: weight_norm(rnn, "weight_hh_l0"),
        lambda rnn: spectral_norm(rnn, "weight_hh_l0"),
        lambda rnn: parametrizations.weight_norm(rnn, "weight_hh_l0"),
        lambda rnn: parametrizations.orthogonal(rnn, "weight_hh_l0"),
    ],
    ids=["weight_norm", "spectral_norm", "parametrized", "orthogonal"],
)
def test_weights_that_are_computed_before_each_run_are_served(change: Callable[[nn.Module], nn.Module]) -> None:
    """The module that is exported has the results of the user's module, with weights that are no longer computed."""
    torch.manual_seed(0)
    notes: list[str] = []
    module = over_vectors(change(nn.LSTM(FEATURES, SIZE, batch_first=True)).eval()).module
    inputs, zeros = torch.randn(1, 1, FEATURES), torch.zeros(1, 1, SIZE)
    with torch.no_grad():
        expected = module(inputs, zeros, zeros)
    exported = WithLengths(plain(module, notes))
    assert notes == ["weight_hh_l0 of rnn keeps its current value"]
    assert "module.rnn.weight_hh_l0" in dict(exported.named_parameters())
    with torch.no_grad():
        found = exported(inputs, torch.tensor([1]), zeros, zeros)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0.0)


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.*norm:FutureWarning")
def test_a_layer_with_a_forward_of_its_own_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """A subclass without one is served, also when its weights are computed before each run."""
    options: Any = {"to": tmp_path, "name": "own", "description": "", "evaluation": {}}
    with pytest.raises(ExportError, match=r"^rnn is a Gated, a subclass of nn\.LSTM with its own forward"):
        write_module(over_vectors(Gated(FEATURES, SIZE, batch_first=True)), **options)
    torch.manual_seed(0)
    model = over_vectors(parametrizations.orthogonal(Renamed(FEATURES, SIZE, batch_first=True), "weight_hh_l0").eval())
    inputs, zeros = torch.randn(1, 1, FEATURES), torch.zeros(1, 1, SIZE)
    with torch.no_grad():
        expected = model.module(inputs, zeros, zeros)[0][0, 0].numpy()
    notes: list[str] = []
    folder = write_module(model, notes=notes, **options)
    assert "weight_hh_l0 of rnn keeps its current value" in notes
    assert np.allclose(ReferenceSession(folder).step(inputs[0, 0].numpy()), expected, atol=1e-5)
