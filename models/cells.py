"""Recurrent cells written out gate by gate, as their papers give them.

These are for reading and for testing: training and export use `models.layers`, whose fused kernels
are held equal to these cells by the tests.

Shapes: `B` batch, `I` input size, `H` hidden size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LSTMCell(nn.Module):
    """The contemporary LSTM cell: the constant error carousel with a forget gate.

    Gers, Schmidhuber, Cummins, "Learning to forget" (1999), over Hochreiter and Schmidhuber (1997):

        f = sigmoid(W_f x + U_f h + b_f)      forget gate: how much of the cell is kept
        i = sigmoid(W_i x + U_i h + b_i)      input gate: how much of the candidate is written
        g = tanh(W_g x + U_g h + b_g)         candidate
        c' = f * c + i * g                    the carousel: along it, dc'/dc = f, with no squashing
        o = sigmoid(W_o x + U_o h + b_o)      output gate: how much of the cell is shown
        h' = o * tanh(c')

    No peepholes; one bias a gate. Inference and training; safe to share between threads for inference.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.forget_gate = _gate(input_size, hidden_size)
        self.input_gate = _gate(input_size, hidden_size)
        self.candidate = _gate(input_size, hidden_size)
        self.output_gate = _gate(input_size, hidden_size)

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """One step. inputs: [B, I]; hidden, cell: [B, H]. Returns the next (hidden, cell), [B, H] each."""
        joined = torch.cat([inputs, hidden], dim=1)  # [B, I + H]
        forget = torch.sigmoid(self.forget_gate(joined))
        admit = torch.sigmoid(self.input_gate(joined))
        candidate = torch.tanh(self.candidate(joined))
        cell = forget * cell + admit * candidate
        show = torch.sigmoid(self.output_gate(joined))
        return show * torch.tanh(cell), cell

    @classmethod
    def from_lstm(cls, lstm: nn.LSTM, layer: int = 0) -> LSTMCell:
        """A cell with the weights of one forward layer of an `nn.LSTM`.

        PyTorch stacks the gates in the order i, f, g, o and keeps two biases a gate; their sum is what counts.
        Raises ValueError for an LSTM without biases or with a projection.
        """
        if not lstm.bias or lstm.proj_size:
            raise ValueError("from_lstm takes an nn.LSTM with bias=True and proj_size=0")
        weight_x: Tensor = getattr(lstm, f"weight_ih_l{layer}")
        weight_h: Tensor = getattr(lstm, f"weight_hh_l{layer}")
        bias: Tensor = getattr(lstm, f"bias_ih_l{layer}") + getattr(lstm, f"bias_hh_l{layer}")
        cell = cls(weight_x.shape[1], lstm.hidden_size)
        gates = (cell.input_gate, cell.forget_gate, cell.candidate, cell.output_gate)
        joined = torch.cat([weight_x, weight_h], dim=1)  # [4H, I + H]
        with torch.no_grad():
            for gate, weight, gate_bias in zip(gates, joined.chunk(4), bias.chunk(4), strict=True):
                gate.weight.copy_(weight)
                gate.bias.copy_(gate_bias)
        return cell


def _gate(input_size: int, hidden_size: int) -> nn.Linear:
    gate = nn.Linear(input_size + hidden_size, hidden_size)
    bound = 1.0 / math.sqrt(hidden_size)
    nn.init.uniform_(gate.weight, -bound, bound)
    nn.init.uniform_(gate.bias, -bound, bound)
    return gate
