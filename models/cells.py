"""Recurrent cells written out gate by gate, as in their papers: the LSTM family, and the networks before and beside it.

They are for reading, for inspection and for tests. `models.recurrent` runs whole sequences, with these cells or with
PyTorch's fused kernels; tests check that both give the same results.

A cell carries state tensors. The first one, `hidden`, is its output. All cells can be trained, and can be shared
between threads for inference.

Shapes: `B` batch, `I` input size, `H` hidden size, `P` projection size.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn


class Cell(nn.Module):
    """Base class of all cells. input_size: I. hidden_size: H."""

    state_names: ClassVar[tuple[str, ...]] = ("hidden",)
    """The names of the state tensors, in the order in which `forward` takes and returns them."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """The sizes of the state tensors, in the order of `state_names`."""
        return (self.hidden_size,) * len(self.state_names)

    def gates(self, inputs: Tensor, *states: Tensor) -> dict[str, Tensor]:
        """Runs one step. Returns every gate and every next state by its name in the trace. Shapes as in `forward`."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Runs one step. inputs: [B, I]. states: [B, size] for each of `state_sizes`. Returns the next states."""
        found = self.gates(inputs, *states)
        return tuple(found[name] for name in self.state_names)


class RNNCell(Cell):
    """The vanilla recurrent network (Elman, "Finding structure in time", 1990):

        h' = tanh(W x + U h + b)

    Its gradient passes through U and the tanh at every step, so it vanishes or explodes (Pascanu et al. 2013).
    nonlinearity: tanh, or relu as in PyTorch's `nn.RNN`.
    """

    def __init__(self, input_size: int, hidden_size: int, *, nonlinearity: Literal["tanh", "relu"] = "tanh") -> None:
        super().__init__(input_size, hidden_size)
        self.joined = _gate(input_size, hidden_size)
        self.squash = torch.tanh if nonlinearity == "tanh" else torch.relu

    def gates(self, inputs: Tensor, *states: Tensor) -> dict[str, Tensor]:
        """See `Cell.gates`. There is only the next hidden state."""
        (hidden,) = states
        return {"hidden": self.squash(self.joined(torch.cat([inputs, hidden], dim=1)))}


class LSTM1997Cell(Cell):
    """The original LSTM: input and output gates around the constant error carousel, and no forget gate.

    Hochreiter and Schmidhuber, "Long short-term memory" (1997):

        i = sigmoid(W_i x + U_i h + b_i)      input gate: how much of the candidate is written
        g = tanh(W_g x + U_g h + b_g)         candidate
        c' = c + i * g                        the carousel: dc'/dc = 1 at every step
        o = sigmoid(W_o x + U_o h + b_o)      output gate: how much of the cell is shown
        h' = o * tanh(c')

    The paper squashes candidate and cell with zero-centred logistic functions. This cell uses tanh, the usual form
    since.
    """

    state_names = ("hidden", "cell")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.input_gate = _gate(input_size, hidden_size)
        self.candidate = _gate(input_size, hidden_size)
        self.output_gate = _gate(input_size, hidden_size)

    def gates(self, inputs: Tensor, *states: Tensor) -> dict[str, Tensor]:
        """See `Cell.gates`."""
        hidden, cell = states
        joined = torch.cat([inputs, hidden], dim=1)  # [B, I + H]
        admit = torch.sigmoid(self.input_gate(joined))
        candidate = torch.tanh(self.candidate(joined))
        cell = cell + admit * candidate
        show = torch.sigmoid(self.output_gate(joined))
        hidden = show * torch.tanh(cell)
        return {"input_gate": admit, "output_gate": show, "candidate": candidate, "cell": cell, "hidden": hidden}


class LSTMCell(Cell):
    """The modern LSTM cell: the constant error carousel with a forget gate.

    Gers, Schmidhuber, Cummins, "Learning to forget" (1999), based on Hochreiter and Schmidhuber (1997):

        f = sigmoid(W_f x + U_f h + b_f)      forget gate: how much of the cell is kept
        i = sigmoid(W_i x + U_i h + b_i)      input gate: how much of the candidate is written
        g = tanh(W_g x + U_g h + b_g)         candidate
        c' = f * c + i * g                    the carousel: dc'/dc = f, with no squashing
        o = sigmoid(W_o x + U_o h + b_o)      output gate: how much of the cell is shown
        h' = o * tanh(c')

    No peepholes. One bias a gate.
    """

    state_names = ("hidden", "cell")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.forget_gate = _gate(input_size, hidden_size)
        self.input_gate = _gate(input_size, hidden_size)
        self.candidate = _gate(input_size, hidden_size)
        self.output_gate = _gate(input_size, hidden_size)

    def gates(self, inputs: Tensor, *states: Tensor) -> dict[str, Tensor]:
        """See `Cell.gates`."""
        hidden, cell = states
        joined = torch.cat([inputs, hidden], dim=1)  # [B, I + H]
        forget = torch.sigmoid(self.forget_gate(joined))
        admit = torch.sigmoid(self.input_gate(joined))
        candidate = torch.tanh(self.candidate(joined))
        cell = forget * cell + admit * candidate
        show = torch.sigmoid(self.output_gate(joined))
        hidden = show * torch.tanh(cell)
        return _lstm_gates(admit, forget, show, candidate, cell, hidden)


class PeepholeLSTMCell(LSTMCell):
    """The LSTM whose gates also read the cell state (Gers, Schraudolph, Schmidhuber, "Learning precise timing", 2002):

        f = sigmoid(W_f x + U_f h + p_f * c + b_f)
        i = sigmoid(W_i x + U_i h + p_i * c + b_i)
        c' = f * c + i * tanh(W_g x + U_g h + b_g)
        o = sigmoid(W_o x + U_o h + p_o * c' + b_o)      the output gate reads the cell after the step
        h' = o * tanh(c')

    Each p is a vector: a gate reads only its own unit's cell. In ONNX's LSTM it is the input `P`.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        bound = 1.0 / math.sqrt(hidden_size)
        self.input_peephole = nn.Parameter(torch.empty(hidden_size).uniform_(-bound, bound))
        self.forget_peephole = nn.Parameter(torch.empty(hidden_size).uniform_(-bound, bound))
        self.output_peephole = nn.Parameter(torch.empty(hidden_size).uniform_(-bound, bound))

    def gates(self, inputs: Tensor, *states: Tensor) -> dict[str, Tensor]:
        """See `Cell.gates`."""
        hidden, cell = states
        joined = torch.cat([inputs, hidden], dim=1)  # [B, I + H]
        forget = torch.sigmoid(self.forget_gate(joined) + self.forget_peephole * cell)
        admit = torch.sigmoid(self.input_gate(joined) + self.input_peephole * cell)
        candidate = torch.tanh(self.candidate(joined))
        cell = forget * cell + admit * candidate
        show = torch.sigmoid(self.output_gate(joined) + self.output_peephole * cell)
        hidden = show * torch.tanh(cell)
        return _lstm_gates(admit, forget, show, candidate, cell, hidden)


class CoupledLSTMCell(Cell):
    """The LSTM that forgets exactly as much as it writes (CIFG; Greff et al., "LSTM: a search space odyssey", 2017):

        i = sigmoid(W_i x + U_i h + b_i),  f = 1 - i
        c' = f * c + i * tanh(W_g x + U_g h + b_g)
        h' = sigmoid(W_o x + U_o h + b_o) * tanh(c')

    It has a quarter fewer weights. In ONNX's LSTM it is the attribute `input_forget`.
    """

    state_names = ("hidden", "cell")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.input_gate = _gate(input_size, hidden_size)
        self.candidate = _gate(input_size, hidden_size)
        self.output_gate = _gate(input_size, hidden_size)

    def gates(self, inputs: Tensor, *states: Tensor) -> dict[str, Tensor]:
        """See `Cell.gates`."""
        hidden, cell = states
        joined = torch.cat([inputs, hidden], dim=1)  # [B, I + H]
        admit = torch.sigmoid(self.input_gate(joined))
        forget = 1.0 - admit
        candidate = torch.tanh(self.candidate(joined))
        cell = forget * cell + admit * candidate
        show = torch.sigmoid(self.output_gate(joined))
        hidden = show * torch.tanh(cell)
        return _lstm_gates(admit, forget, show, candidate, cell, hidden)


class ProjectedLSTMCell(Cell):
    """The LSTM whose output is a projection of the shown cell (Sak, Senior, Beaufays, "LSTM recurrent neural network
    architectures for large scale acoustic modeling", 2014; PyTorch's `proj_size`):

        f, i, g, o, c' as in the LSTM, from x and the projected h
        h' = W_p (o * tanh(c'))               [P], with P < H

    The hidden state has P units, the cell state H.
    """

    state_names = ("hidden", "cell")

    def __init__(self, input_size: int, hidden_size: int, projection_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.projection_size = projection_size
        self.forget_gate = _gate(input_size, hidden_size, projection_size)
        self.input_gate = _gate(input_size, hidden_size, projection_size)
        self.candidate = _gate(input_size, hidden_size, projection_size)
        self.output_gate = _gate(input_size, hidden_size, projection_size)
        self.projection = nn.Linear(hidden_size, projection_size, bias=False)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """(P, H)."""
        return self.projection_size, self.hidden_size

    def gates(self, inputs: Tensor, *states: Tensor) -> dict[str, Tensor]:
        """See `Cell.gates`."""
        hidden, cell = states
        joined = torch.cat([inputs, hidden], dim=1)  # [B, I + P]
        forget = torch.sigmoid(self.forget_gate(joined))
        admit = torch.sigmoid(self.input_gate(joined))
        candidate = torch.tanh(self.candidate(joined))
        cell = forget * cell + admit * candidate
        show = torch.sigmoid(self.output_gate(joined))
        hidden = self.projection(show * torch.tanh(cell))
        return _lstm_gates(admit, forget, show, candidate, cell, hidden)


class GRUCell(Cell):
    """The gated recurrent unit (Cho et al., "Learning phrase representations", 2014), in the form of cuDNN and PyTorch,
    which applies the reset gate after the product:

        r = sigmoid(W_r x + U_r h + b_r)                       reset gate: how much of the past the candidate reads
        z = sigmoid(W_z x + U_z h + b_z)                       update gate: how much of the past is kept
        n = tanh(W_n x + b_n + r * (U_n h + d_n))              candidate
        h' = (1 - z) * n + z * h

    In ONNX's GRU this form is the attribute `linear_before_reset`.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.reset_gate = _gate(input_size, hidden_size)
        self.update_gate = _gate(input_size, hidden_size)
        self.candidate_of_input = _uniform(nn.Linear(input_size, hidden_size), hidden_size)
        self.candidate_of_hidden = _uniform(nn.Linear(hidden_size, hidden_size), hidden_size)

    def gates(self, inputs: Tensor, *states: Tensor) -> dict[str, Tensor]:
        """See `Cell.gates`."""
        (hidden,) = states
        joined = torch.cat([inputs, hidden], dim=1)  # [B, I + H]
        reset = torch.sigmoid(self.reset_gate(joined))
        update = torch.sigmoid(self.update_gate(joined))
        candidate = torch.tanh(self.candidate_of_input(inputs) + reset * self.candidate_of_hidden(hidden))
        hidden = (1.0 - update) * candidate + update * hidden
        return {"reset_gate": reset, "update_gate": update, "candidate": candidate, "hidden": hidden}


def _lstm_gates(  # noqa: PLR0917  # the parts of an LSTM, in the order of the step's computation
    admit: Tensor, forget: Tensor, show: Tensor, candidate: Tensor, cell: Tensor, hidden: Tensor
) -> dict[str, Tensor]:
    return {
        "input_gate": admit,
        "forget_gate": forget,
        "output_gate": show,
        "candidate": candidate,
        "cell": cell,
        "hidden": hidden,
    }


def _gate(input_size: int, hidden_size: int, fed_back_size: int | None = None) -> nn.Linear:
    """Makes one gate's weights over [x, h]. fed_back_size: the size of h; default H."""
    fed_back = hidden_size if fed_back_size is None else fed_back_size
    return _uniform(nn.Linear(input_size + fed_back, hidden_size), hidden_size)


def _uniform(linear: nn.Linear, hidden_size: int) -> nn.Linear:
    """Draws the weights as PyTorch does for recurrent layers, uniformly within 1/sqrt(H)."""
    bound = 1.0 / math.sqrt(hidden_size)
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.uniform_(linear.bias, -bound, bound)
    return linear
