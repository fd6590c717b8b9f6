"""Recurrent layers for every cell: fast in PyTorch, plain ONNX operators when exported.

In PyTorch, a layer calls the fused kernel of its cell, or unrolls the cell if there is no kernel. In
`torch.onnx.export` it emits ONNX's `GRU` or `LSTM` operator, with explicit initial and final state and `sequence_lens`,
so that a row's bits do not depend on its batch, its chunk or padding. Two kinds become a `Scan` instead, whose bits do
not depend on them either: projected layers, because the operator has no projection, and vanilla layers, because the
bits of ONNX Runtime's `RNN` depend on batch and chunk.

Shapes: `B` batch, `T` time, `I` input size, `H` hidden size, `D` directions, `O` output size (H, or P when projected).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.cells import Cell, CoupledLSTMCell, LSTM1997Cell, PeepholeLSTMCell
from models.weights import cell_of, onnx_layout

ONNX_DOMAIN_VERSION = 22

CellKind = Literal["rnn", "lstm-1997", "lstm", "lstm-peephole", "lstm-coupled", "lstm-projected", "gru"]
"""The kinds of cells."""

_UNROLLED: dict[CellKind, type[LSTM1997Cell | PeepholeLSTMCell | CoupledLSTMCell]] = {
    "lstm-1997": LSTM1997Cell,
    "lstm-peephole": PeepholeLSTMCell,
    "lstm-coupled": CoupledLSTMCell,
}
"""The cells without a kernel in PyTorch. Their layer has `cells`; that of any other kind has a kernel, `rnn`."""


def state_names(kind: CellKind) -> tuple[str, ...]:
    """The names of the states that a layer of this kind carries from step to step."""
    return ("hidden",) if kind in ("rnn", "gru") else ("hidden", "cell")


class RecurrentLayer(nn.Module):
    """One forward or bidirectional layer, time first, with explicit state.

    projection_size: P; only for "lstm-projected". nonlinearity: only for "rnn". Call `prepare_for_export` once before
    `torch.onnx.export`. Raises ValueError for sizes that the kind does not allow.
    """

    onnx_weight: Tensor
    onnx_recurrence: Tensor
    onnx_bias: Tensor
    onnx_peephole: Tensor

    def __init__(
        self,
        kind: CellKind,
        input_size: int,
        hidden_size: int,
        *,
        projection_size: int = 0,
        bidirectional: bool = False,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
    ) -> None:
        super().__init__()
        if (kind == "lstm-projected") != (projection_size > 0):
            raise ValueError(f"projection_size is {projection_size}: it must be above 0 for lstm-projected, else 0")
        self.kind = kind
        self.hidden_size = hidden_size
        self.num_directions = 2 if bidirectional else 1
        self.nonlinearity = nonlinearity
        self.cells = nn.ModuleList()
        if kind in _UNROLLED:
            self.cells.extend(_UNROLLED[kind](input_size, hidden_size) for _ in range(self.num_directions))
        elif kind == "rnn":
            self.rnn: nn.RNNBase = nn.RNN(
                input_size, hidden_size, nonlinearity=nonlinearity, bidirectional=bidirectional
            )
        elif kind == "gru":
            self.rnn = nn.GRU(input_size, hidden_size, bidirectional=bidirectional)
        else:
            self.rnn = nn.LSTM(input_size, hidden_size, proj_size=projection_size, bidirectional=bidirectional)

    @property
    def output_size(self) -> int:
        """O, for one direction."""
        return self.state_sizes[0]

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """The size of the last axis of each state."""
        if self.kind == "lstm-projected":
            return self.rnn.proj_size, self.hidden_size
        return (self.hidden_size,) * len(state_names(self.kind))

    @property
    def is_scanned(self) -> bool:
        """Whether the layer is exported as a `Scan`, because ONNX has no operator for it with exact bits."""
        return self.kind in ("lstm-projected", "rnn")

    def forward(self, inputs: Tensor, lengths: Tensor | None, *states: Tensor) -> tuple[Tensor, ...]:
        """Runs the layer over a ragged batch.

        inputs: [T, B, I]; lengths: [B] int64 in 1..T, or None when every row is T long; states: [D, B, size] each.
        Returns outputs [T, B, D * O] (zero past a row's length when lengths are given) and each row's states after its
        own last step, [D, B, size] each.
        """
        if torch.onnx.is_in_onnx_export():
            return self._scan(inputs, lengths, states) if self.is_scanned else self._emit(inputs, lengths, states)
        if self.cells:
            return self._unroll(inputs, lengths, states)
        carried = states if len(states) > 1 else states[0]
        if lengths is None:
            outputs, carried = self.rnn(inputs, carried)
        else:
            packed = pack_padded_sequence(inputs, lengths.cpu(), enforce_sorted=False)
            packed_outputs, carried = self.rnn(packed, carried)
            outputs, _ = pad_packed_sequence(packed_outputs, total_length=inputs.shape[0])
        return (outputs, *carried) if len(states) > 1 else (outputs, carried)

    def prepare_for_export(self) -> None:
        """Registers the weights in ONNX's layout: gates i, o, f, c (LSTM) or z, r, h (GRU), and peepholes i, o, f."""
        if self.is_scanned:
            return  # a `Scan` uses the layer's own weights
        directions = [self.cell(direction) for direction in range(self.num_directions)]
        laid_out = [onnx_layout(cell) for cell in directions]
        for name, tensors in zip(("weight", "recurrence", "bias"), zip(*laid_out, strict=True), strict=True):
            self.register_buffer(f"onnx_{name}", torch.stack(tensors).detach(), persistent=False)
        if self.kind == "lstm-peephole":
            peepholes = [
                torch.cat([cell.input_peephole, cell.output_peephole, cell.forget_peephole])
                for cell in directions
                if isinstance(cell, PeepholeLSTMCell)
            ]
            self.register_buffer("onnx_peephole", torch.stack(peepholes).detach(), persistent=False)  # [D, 3H]

    def cell(self, direction: int = 0) -> Cell:
        """Returns the written-out cell of a direction: the layer's own, or one with the weights of its kernel."""
        if self.cells:
            cell = self.cells[direction]
            assert isinstance(cell, Cell)  # noqa: S101  # all of `_UNROLLED` are cells
            return cell
        return cell_of(self.rnn, reverse=direction == 1)

    def _unroll(self, inputs: Tensor, lengths: Tensor | None, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        outputs, finals = [], []
        for direction in range(self.num_directions):
            carried = tuple(state[direction] for state in states)
            shown, carried = unroll(self.cell(direction), inputs, lengths, carried, reverse=direction == 1)
            outputs.append(shown)
            finals.append(carried)
        return (torch.cat(outputs, dim=-1), *(torch.stack(tensors) for tensors in zip(*finals, strict=True)))

    def _emit(self, inputs: Tensor, lengths: Tensor | None, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Emits the ONNX operator."""
        steps, rows, _ = inputs.shape
        directions, size = self.num_directions, self.hidden_size
        sequence_lens = None if lengths is None else lengths.to(torch.int32)
        given = [inputs, self.onnx_weight, self.onnx_recurrence, self.onnx_bias, sequence_lens, *states]
        attributes: dict[str, Any] = {
            "hidden_size": size,
            "direction": "bidirectional" if directions == 2 else "forward",
        }
        if self.kind == "lstm-peephole":
            given.append(self.onnx_peephole)
        elif self.kind == "lstm-coupled":
            attributes["input_forget"] = 1
        elif self.kind == "gru":
            attributes["linear_before_reset"] = 1
        shapes = ((steps, directions, rows, size), *((directions, rows, size) for _ in states))
        outputs, *finals = torch.onnx.ops.symbolic_multi_out(
            "GRU" if self.kind == "gru" else "LSTM",
            given,
            attributes,
            dtypes=(inputs.dtype,) * len(shapes),
            shapes=shapes,
            version=ONNX_DOMAIN_VERSION,
        )
        if directions == 1:
            return (outputs.squeeze(1), *finals)
        return (outputs.transpose(1, 2).reshape(steps, rows, directions * size), *finals)

    def _scan(self, inputs: Tensor, lengths: Tensor | None, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Emits a `Scan` for each direction of a projected or vanilla layer."""
        steps = torch.arange(inputs.shape[0])[:, None]
        real = steps >= 0 if lengths is None else steps < lengths[None, :]
        real = real.expand(inputs.shape[0], inputs.shape[1]).unsqueeze(-1)  # [T, B, 1]
        directions = [
            self._scan_direction(inputs, real, tuple(state[direction] for state in states), direction)
            for direction in range(self.num_directions)
        ]
        outputs, *finals = zip(*directions, strict=True)
        shown = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        return (shown, *(torch.stack(final) for final in finals))

    def _scan_direction(
        self, inputs: Tensor, real: Tensor, states: tuple[Tensor, ...], direction: int
    ) -> tuple[Tensor, ...]:
        """Scans one direction. The products of all inputs are computed at once, those of the state step by step. Past a
        row's length its state does not change, so the reverse direction begins at each row's own end. It reads the
        weights of the kernel `rnn`. states: [B, size] each."""
        suffix = "_l0" + "_reverse" * direction
        weight_x, weight_h, bias_x, bias_h = (
            getattr(self.rnn, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        projection = getattr(self.rnn, f"weight_hr{suffix}", None)
        of_inputs = inputs @ weight_x.T + (bias_x + bias_h)  # [T, B, 4H] or [T, B, H]
        is_relu = self.nonlinearity == "relu"

        def step(carried: tuple[Tensor, ...], given: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
            of_input, is_real = given
            gates = of_input + carried[0] @ weight_h.T
            if projection is None:
                following: tuple[Tensor, ...] = (torch.relu(gates) if is_relu else torch.tanh(gates),)
            else:
                admit, forget, candidate, show = gates.chunk(4, dim=1)
                kept = torch.sigmoid(forget) * carried[1] + torch.sigmoid(admit) * torch.tanh(candidate)
                following = ((torch.sigmoid(show) * torch.tanh(kept)) @ projection.T, kept)
            output = torch.where(is_real, following[0], torch.zeros((), dtype=inputs.dtype))
            return tuple(torch.where(is_real, new, old) for new, old in zip(following, carried, strict=True)), output

        finals, outputs = scan(step, states, (of_inputs, real), reverse=direction == 1)
        return (outputs, *finals)


def unroll(
    cell: Cell, inputs: Tensor, lengths: Tensor | None, states: Sequence[Tensor], *, reverse: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs a cell over a ragged batch, step by step.

    inputs: [T, B, I]; lengths: [B] or None; states: [B, size] each. Returns outputs [T, B, O], zero past a row's
    length, and the states after each row's last step. reverse: run from the last step to the first.
    """
    num_steps = inputs.shape[0]
    carried = tuple(states)
    outputs: list[Tensor] = [inputs] * num_steps
    for step in reversed(range(num_steps)) if reverse else range(num_steps):
        following = cell(inputs[step], *carried)
        outputs[step] = following[0]
        if lengths is not None:
            real = (lengths > step).unsqueeze(1)  # [B, 1]
            outputs[step] = torch.where(real, following[0], 0.0)
            following = tuple(torch.where(real, new, old) for new, old in zip(following, carried, strict=True))
        carried = following
    return torch.stack(outputs), carried
