"""Every cell in plain NumPy with double precision, from its equations. PyTorch and ONNX Runtime must agree with it.

Shapes: `B` batch, `I` input size, `H` hidden size, `P` projection size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from models.cells import (
    Cell,
    CoupledLSTMCell,
    GRUCell,
    LSTM1997Cell,
    LSTMCell,
    PeepholeLSTMCell,
    ProjectedLSTMCell,
    RNNCell,
)

Array = NDArray[np.float64]
Found = dict[str, Array]


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def gates(cell: Cell, x: Array, *states: Array) -> Found:
    """Returns every gate and every next state of one step, by name. x: [B, I]; states: [B, size] each."""
    return _EQUATIONS[type(cell)](cell, x, *states)


def _affine(linear: torch.nn.Linear, x: Array) -> Array:
    bias = 0.0 if linear.bias is None else linear.bias.detach().double().numpy()
    found: Array = x @ linear.weight.detach().double().numpy().T + bias
    return found


def _numbers(tensor: torch.Tensor) -> Array:
    found: Array = tensor.detach().double().numpy()
    return found


def _rnn(cell: RNNCell, x: Array, h: Array) -> Found:
    return {"hidden": np.tanh(_affine(cell.joined, np.concatenate([x, h], 1)))}


def _lstm_1997(cell: LSTM1997Cell, x: Array, h: Array, c: Array) -> Found:
    joined = np.concatenate([x, h], 1)
    i, o = sigmoid(_affine(cell.input_gate, joined)), sigmoid(_affine(cell.output_gate, joined))
    g = np.tanh(_affine(cell.candidate, joined))
    c = c + i * g
    return {"input_gate": i, "forget_gate": np.ones_like(i), "output_gate": o, "candidate": g, "cell": c} | {
        "hidden": o * np.tanh(c)
    }


def _lstm(cell: LSTMCell, x: Array, h: Array, c: Array) -> Found:
    joined = np.concatenate([x, h], 1)
    f, i = sigmoid(_affine(cell.forget_gate, joined)), sigmoid(_affine(cell.input_gate, joined))
    g, o = np.tanh(_affine(cell.candidate, joined)), sigmoid(_affine(cell.output_gate, joined))
    c = f * c + i * g
    return _told(i, f, o, g, c, o * np.tanh(c))


def _peephole(cell: PeepholeLSTMCell, x: Array, h: Array, c: Array) -> Found:
    joined = np.concatenate([x, h], 1)
    f = sigmoid(_affine(cell.forget_gate, joined) + _numbers(cell.forget_peephole) * c)
    i = sigmoid(_affine(cell.input_gate, joined) + _numbers(cell.input_peephole) * c)
    g = np.tanh(_affine(cell.candidate, joined))
    c = f * c + i * g
    o = sigmoid(_affine(cell.output_gate, joined) + _numbers(cell.output_peephole) * c)
    return _told(i, f, o, g, c, o * np.tanh(c))


def _coupled(cell: CoupledLSTMCell, x: Array, h: Array, c: Array) -> Found:
    joined = np.concatenate([x, h], 1)
    i, o = sigmoid(_affine(cell.input_gate, joined)), sigmoid(_affine(cell.output_gate, joined))
    g = np.tanh(_affine(cell.candidate, joined))
    c = (1 - i) * c + i * g
    return _told(i, 1 - i, o, g, c, o * np.tanh(c))


def _projected(cell: ProjectedLSTMCell, x: Array, h: Array, c: Array) -> Found:
    joined = np.concatenate([x, h], 1)
    f, i = sigmoid(_affine(cell.forget_gate, joined)), sigmoid(_affine(cell.input_gate, joined))
    g, o = np.tanh(_affine(cell.candidate, joined)), sigmoid(_affine(cell.output_gate, joined))
    c = f * c + i * g
    return _told(i, f, o, g, c, _affine(cell.projection, o * np.tanh(c)))


def _gru(cell: GRUCell, x: Array, h: Array) -> Found:
    joined = np.concatenate([x, h], 1)
    r, z = sigmoid(_affine(cell.reset_gate, joined)), sigmoid(_affine(cell.update_gate, joined))
    n = np.tanh(_affine(cell.candidate_of_input, x) + r * _affine(cell.candidate_of_hidden, h))
    return {"reset_gate": r, "update_gate": z, "candidate": n, "hidden": (1 - z) * n + z * h}


def _told(  # noqa: PLR0917
    i: Array, f: Array, o: Array, g: Array, c: Array, h: Array
) -> Found:
    return {"input_gate": i, "forget_gate": f, "output_gate": o, "candidate": g, "cell": c, "hidden": h}


_EQUATIONS: dict[type[Cell], Callable[..., Found]] = {
    RNNCell: _rnn,
    LSTM1997Cell: _lstm_1997,
    LSTMCell: _lstm,
    PeepholeLSTMCell: _peephole,
    CoupledLSTMCell: _coupled,
    ProjectedLSTMCell: _projected,
    GRUCell: _gru,
}
