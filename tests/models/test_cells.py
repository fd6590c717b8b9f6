"""The cell written out gate by gate is PyTorch's LSTM."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from models.recurrent import cell_of

B, T, X, H = 3, 7, 5, 8  # X: input size


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_an_unrolled_cell_answers_what_nn_lstm_answers() -> None:
    """Step by step, from any state, the outputs and the last state are those of the fused kernel."""
    lstm = nn.LSTM(X, H)
    cell_module = cell_of(lstm)
    inputs, hidden, cell = torch.randn(T, B, X), torch.randn(B, H), torch.randn(B, H)
    expected, (last_hidden, last_cell) = lstm(inputs, (hidden.unsqueeze(0), cell.unsqueeze(0)))
    for step, output in zip(inputs, expected, strict=True):
        hidden, cell = cell_module(step, hidden, cell)
        torch.testing.assert_close(hidden, output)
    torch.testing.assert_close(hidden, last_hidden[0])
    torch.testing.assert_close(cell, last_cell[0])


def test_cell_of_takes_any_layer_of_a_stack() -> None:
    """Layer 1's cell, fed layer 0's outputs, gives the stack's outputs."""
    lstm = nn.LSTM(X, H, num_layers=2)
    cells = [cell_of(lstm, layer) for layer in range(2)]
    inputs = torch.randn(T, B, X)
    expected, _ = lstm(inputs)
    states = [(torch.zeros(B, H), torch.zeros(B, H)) for _ in cells]
    for step, output in zip(inputs, expected, strict=True):
        below = step
        for layer, module in enumerate(cells):
            states[layer] = module(below, *states[layer])
            below = states[layer][0]
        torch.testing.assert_close(below, output)


def test_a_cell_learns_as_nn_lstm_does() -> None:
    """The gradient of a loss by the inputs is the same through both."""
    lstm = nn.LSTM(X, H)
    cell_module = cell_of(lstm)
    ours, theirs = (torch.ones(T, B, X, requires_grad=True) for _ in range(2))
    hidden, cell = torch.zeros(B, H), torch.zeros(B, H)
    for step in ours:
        hidden, cell = cell_module(step, hidden, cell)
    torch.autograd.backward(hidden.square().sum())
    torch.autograd.backward(lstm(theirs)[0][-1].square().sum())
    torch.testing.assert_close(ours.grad, theirs.grad)
