"""Converts weights between the layouts of PyTorch's kernels, the written-out cells, and ONNX's operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.cells import (
    Cell,
    CoupledLSTMCell,
    GRUCell,
    LSTM1997Cell,
    LSTMCell,
    ProjectedLSTMCell,
    RNNCell,
)

_OPEN = 100.0
"""The bias of a forget gate that is always open: ONNX Runtime's logistic function is exactly 1 from 18 on."""


def cell_of(rnn: nn.RNNBase, layer: int = 0, *, reverse: bool = False) -> Cell:
    """Makes a cell with the weights of one layer and direction of an `nn.RNN`, `nn.LSTM` or `nn.GRU`.

    PyTorch stacks the gates, and has two biases for each gate. Only their sum matters, except for the GRU's candidate.
    """
    suffix = f"_l{layer}" + ("_reverse" if reverse else "")
    weight_x: Tensor = getattr(rnn, f"weight_ih{suffix}").detach()
    weight_h: Tensor = getattr(rnn, f"weight_hh{suffix}").detach()
    zeros = weight_x.new_zeros(len(weight_x))
    bias_x, bias_h = (
        getattr(rnn, f"{name}{suffix}").detach() if rnn.bias else zeros for name in ("bias_ih", "bias_hh")
    )
    sizes = (weight_x.shape[1], rnn.hidden_size)
    cell: Cell
    if isinstance(rnn, nn.GRU):
        gru = cell = GRUCell(*sizes)
        num_gated = 2 * rnn.hidden_size
        gates = [gru.reset_gate, gru.update_gate]
        _fill(gates, weight_x[:num_gated], weight_h[:num_gated], (bias_x + bias_h)[:num_gated])
        _set(gru.candidate_of_input, weight_x[num_gated:], bias_x[num_gated:])
        _set(gru.candidate_of_hidden, weight_h[num_gated:], bias_h[num_gated:])
    elif isinstance(rnn, nn.LSTM):
        lstm = cell = ProjectedLSTMCell(*sizes, rnn.proj_size) if rnn.proj_size else LSTMCell(*sizes)
        gates = [lstm.input_gate, lstm.forget_gate, lstm.candidate, lstm.output_gate]
        _fill(gates, weight_x, weight_h, bias_x + bias_h)
        if isinstance(lstm, ProjectedLSTMCell):
            lstm.projection.weight = nn.Parameter(getattr(rnn, f"weight_hr{suffix}").detach().clone())
    else:
        plain = cell = RNNCell(*sizes, nonlinearity=getattr(rnn, "nonlinearity", "tanh"))
        _fill([plain.joined], weight_x, weight_h, bias_x + bias_h)
    return cell.to(weight_x.dtype)


def _fill(gates: Sequence[nn.Linear], weight_x: Tensor, weight_h: Tensor, bias: Tensor) -> None:
    joined = torch.cat([weight_x, weight_h], dim=1)
    count = len(gates)
    for gate, weight, gate_bias in zip(gates, joined.chunk(count), bias.chunk(count), strict=True):
        _set(gate, weight, gate_bias)


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    linear.weight, linear.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())


def onnx_layout(cell: Cell) -> Iterator[Tensor]:
    """Yields weight [n H, I], recurrence [n H, H] and bias [2 n H] of a cell with n gates, in the operator's order."""
    zeros = torch.zeros(cell.hidden_size)
    if isinstance(cell, GRUCell):
        gates = [cell.update_gate, cell.reset_gate]
        weights = [gate.weight[:, : cell.input_size] for gate in gates] + [cell.candidate_of_input.weight]
        recurrences = [gate.weight[:, cell.input_size :] for gate in gates] + [cell.candidate_of_hidden.weight]
        biases = [gate.bias for gate in gates] + [cell.candidate_of_input.bias]
        more = [zeros, zeros, cell.candidate_of_hidden.bias]
    else:
        order = _lstm_order(cell)
        weights = [gate.weight[:, : cell.input_size] for gate in order]
        recurrences = [gate.weight[:, cell.input_size :] for gate in order]
        biases = [gate.bias for gate in order]
        more = [zeros] * len(order)
    yield torch.cat(weights)
    yield torch.cat(recurrences)
    yield torch.cat([*biases, *more])


def _lstm_order(cell: Cell) -> list[nn.Linear]:
    """Returns the gates i, o, f, c. A forget gate that the cell lacks is always open; a coupled one is not read."""
    assert isinstance(cell, LSTMCell | LSTM1997Cell | CoupledLSTMCell)  # noqa: S101  # the only LSTMs emitted this way
    if isinstance(cell, LSTMCell):
        return [cell.input_gate, cell.output_gate, cell.forget_gate, cell.candidate]
    forget = nn.Linear(cell.input_size + cell.hidden_size, cell.hidden_size)
    nn.init.zeros_(forget.weight)
    nn.init.constant_(forget.bias, _OPEN if isinstance(cell, LSTM1997Cell) else 0.0)
    return [cell.input_gate, cell.output_gate, forget, cell.candidate]
