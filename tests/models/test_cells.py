"""Every cell, computed gate by gate, equals its equations, and PyTorch's kernel where one exists."""

from __future__ import annotations

from typing import get_args

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from torch import Tensor, nn

from models.recurrent import CellKind, RecurrentLayer, state_names, unroll
from models.weights import cell_of
from tests.models import numpy_cells

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

B, T, X, H, P = 3, 7, 5, 8, 4  # X: input size
LENGTHS = torch.tensor([7, 1, 4])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def layer_of(kind: CellKind, *, bidirectional: bool = False) -> RecurrentLayer:
    return RecurrentLayer(kind, X, H, projection_size=P if kind == "lstm-projected" else 0, bidirectional=bidirectional)


def states_of(layer: RecurrentLayer, num_rows: int = B) -> tuple[Tensor, ...]:
    return tuple(torch.randn(layer.num_directions, num_rows, size) for size in layer.state_sizes)


@pytest.mark.parametrize("kind", get_args(CellKind))
def test_a_cell_equals_its_equations(kind: CellKind) -> None:
    """Every gate and every state, from any state, equals what plain NumPy computes from the paper's formulas."""
    layer = layer_of(kind)
    cell = layer.cell()
    assert cell.state_names == state_names(kind)
    assert cell.state_sizes == layer.state_sizes
    inputs, states = torch.randn(B, X), [state[0] for state in states_of(layer)]
    with torch.no_grad():
        found = cell.gates(inputs, *states)
        following = cell(inputs, *states)
    expected = numpy_cells.gates(cell, inputs.double().numpy(), *(state.double().numpy() for state in states))
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], atol=1e-6)
    for name, tensor in zip(cell.state_names, following, strict=True):
        assert torch.equal(tensor, found[name])


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm", "lstm-projected"])
def test_an_unrolled_cell_answers_what_the_kernel_answers(kind: CellKind) -> None:
    """Outputs and last states equal PyTorch's, from any state."""
    layer = layer_of(kind)
    inputs, states = torch.randn(T, B, X), states_of(layer)
    with torch.no_grad():
        expected, *last = layer(inputs, None, *states)
        found, finals = unroll(layer.cell(), inputs, None, [state[0] for state in states])
    torch.testing.assert_close(found, expected)
    for final, state in zip(finals, last, strict=True):
        torch.testing.assert_close(final, state[0])


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_cell_of_takes_any_layer_and_direction_of_a_module(nonlinearity: str, bias: bool) -> None:
    """Both layers of a bidirectional RNN are computed cell by cell, with biases and without."""
    rnn = nn.RNN(X, H, num_layers=2, bidirectional=True, nonlinearity=nonlinearity, bias=bias)
    inputs = torch.randn(T, B, X)
    with torch.no_grad():
        expected, _ = rnn(inputs)
        for layer in range(2):
            both = [
                unroll(cell_of(rnn, layer, reverse=reverse), inputs, None, [torch.zeros(B, H)], reverse=reverse)[0]
                for reverse in (False, True)
            ]
            inputs = torch.cat(both, dim=-1)
    torch.testing.assert_close(inputs, expected)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", get_args(CellKind))
def test_a_ragged_layer_runs_each_row_as_if_it_were_alone(kind: CellKind, bidirectional: bool) -> None:
    """A row's outputs up to its length and its last states equal those of the row alone; outputs past its length are
    zero."""
    layer = layer_of(kind, bidirectional=bidirectional)
    inputs, states = torch.randn(T, B, X), states_of(layer)
    with torch.no_grad():
        outputs, *last = layer(inputs, LENGTHS, *states)
        for row, length in enumerate(LENGTHS.tolist()):
            here = slice(row, row + 1)
            alone, *last_alone = layer(inputs[:length, here], None, *(state[:, here] for state in states))
            torch.testing.assert_close(outputs[:length, here], alone)
            assert not outputs[length:, row].any()
            for together, own in zip(last, last_alone, strict=True):
                torch.testing.assert_close(together[:, here], own)


@pytest.mark.parametrize("kind", get_args(CellKind))
def test_every_cell_can_learn(kind: CellKind) -> None:
    """The gradient of a late loss reaches every weight and the first input."""
    layer = layer_of(kind)
    inputs = torch.randn(T, B, X, requires_grad=True)
    outputs, *_ = layer(inputs, None, *states_of(layer))
    torch.autograd.backward(outputs[-1].square().sum())
    assert inputs.grad is not None
    assert inputs.grad[0].any()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_without_a_forget_gate_the_state_is_kept_forever() -> None:
    """With a closed input gate, the state of the 1997 cell does not change in a thousand steps."""
    layer = layer_of("lstm-1997")
    cell = layer.cell()
    with torch.no_grad():
        getattr(cell, "input_gate").bias.fill_(-1e4)  # noqa: B009  # only this cell has the attribute
        hidden, kept = torch.zeros(B, H), torch.randn(B, H)
        _, (_, last) = unroll(cell, torch.randn(1000, B, X), None, [hidden, kept])
    assert torch.equal(last, kept)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("lstm", {"projection_size": 4}, "projection_size is .: it must be above 0 for lstm-projected"),
        ("lstm-projected", {}, "projection_size is .: it must be above 0 for lstm-projected"),
    ],
)
def test_sizes_that_do_not_go_with_a_cell_are_refused(kind: CellKind, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecurrentLayer(kind, X, H, **options)  # type: ignore[arg-type]
