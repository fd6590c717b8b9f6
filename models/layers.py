"""Recurrent and attention layers that run fast in PyTorch and export to plain ONNX operators.

In PyTorch they call its fused kernels. Inside `torch.onnx.export` they emit ONNX's own `LSTM`
operator with explicit initial and final state and `sequence_lens`, and an attention whose every
reduction has one fixed order, so that a row's bits do not depend on its batch, its chunk or padding.

Shapes: `B` batch, `T` time, `S` source, `I` input size, `H` hidden size, `D` directions, `A` attention size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

ONNX_DOMAIN_VERSION = 22


class LSTMLayer(nn.Module):
    """One LSTM layer, forward or bi-directional, time-first, with explicit state.

    Call `prepare_for_export` once before `torch.onnx.export`.
    """

    onnx_weight: Tensor
    onnx_recurrence: Tensor
    onnx_bias: Tensor

    def __init__(self, input_size: int, hidden_size: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_directions = 2 if bidirectional else 1
        self.lstm = nn.LSTM(input_size, hidden_size, bidirectional=bidirectional)

    def forward(
        self, inputs: Tensor, lengths: Tensor | None, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the layer over a ragged batch.

        inputs: [T, B, I]; lengths: [B] int64 in 1..T, or None when every row is T long; hidden, cell: [D, B, H].
        Returns outputs [T, B, D * H] (zero past a row's length when lengths are given) and each row's
        state after its own last step, [D, B, H] each.
        """
        if torch.onnx.is_in_onnx_export():
            return self._onnx_forward(inputs, lengths, hidden, cell)
        if lengths is None:
            outputs, (hidden, cell) = self.lstm(inputs, (hidden, cell))
            return outputs, hidden, cell
        packed = pack_padded_sequence(inputs, lengths.cpu(), enforce_sorted=False)
        packed_outputs, (hidden, cell) = self.lstm(packed, (hidden, cell))
        outputs, _ = pad_packed_sequence(packed_outputs, total_length=inputs.shape[0])
        return outputs, hidden, cell

    def prepare_for_export(self) -> None:
        """Registers the weights in ONNX's layout: gates i, o, f, c where PyTorch stacks i, f, g, o."""
        order = (0, 3, 1, 2)
        suffixes = ("", "_reverse")[: self.num_directions]

        def stacked(name: str) -> Tensor:
            per_direction = []
            for suffix in suffixes:
                gates = getattr(self.lstm, f"{name}_l0{suffix}").detach().chunk(4)
                per_direction.append(torch.cat([gates[gate] for gate in order]))
            return torch.stack(per_direction)

        self.register_buffer("onnx_weight", stacked("weight_ih"), persistent=False)  # [D, 4H, I]
        self.register_buffer("onnx_recurrence", stacked("weight_hh"), persistent=False)  # [D, 4H, H]
        bias = torch.cat([stacked("bias_ih"), stacked("bias_hh")], dim=1)
        self.register_buffer("onnx_bias", bias, persistent=False)  # [D, 8H]

    def _onnx_forward(
        self, inputs: Tensor, lengths: Tensor | None, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps, rows, _ = inputs.shape
        directions, size = self.num_directions, self.hidden_size
        sequence_lens = None if lengths is None else lengths.to(torch.int32)
        outputs, hidden, cell = torch.onnx.ops.symbolic_multi_out(
            "LSTM",
            (inputs, self.onnx_weight, self.onnx_recurrence, self.onnx_bias, sequence_lens, hidden, cell),
            {"hidden_size": size, "direction": "bidirectional" if directions == 2 else "forward"},
            dtypes=(inputs.dtype,) * 3,
            shapes=((steps, directions, rows, size), (directions, rows, size), (directions, rows, size)),
            version=ONNX_DOMAIN_VERSION,
        )
        if directions == 1:
            return outputs.squeeze(1), hidden, cell
        return outputs.transpose(1, 2).reshape(steps, rows, directions * size), hidden, cell


class LuongAttention(nn.Module):
    """Global attention with the "general" score q W m (Luong, Pham, Manning 2015, equations 7 and 8).

    The memory has the attention's own size `A`; padded positions are masked out and add exact zeros.
    """

    def __init__(self, query_size: int, attention_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_size, attention_size, bias=False)

    def forward(self, query: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """query: [B, T, H]; memory: [B, S, A], zero where padded; memory_mask: [B, S] bool, True where real.

        Returns the attended context, [B, T, A]. Every row needs at least one real position.
        """
        projected = self.query(query)  # [B, T, A]
        if torch.onnx.is_in_onnx_export():
            return _attend_in_fixed_order(projected, memory, memory_mask)
        scores = projected @ memory.transpose(1, 2)  # [B, T, S]
        weights = scores.masked_fill(~memory_mask.unsqueeze(1), float("-inf")).softmax(dim=-1)
        attended: Tensor = weights @ memory
        return attended


def _attend_in_fixed_order(query: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
    """Attention as matrix-vector products, one a query: the same value as softmax(q m') m.

    A matrix-matrix product may split its inner sum differently for another number of queries or another
    padding, and a softmax operator's sum is a tree whose shape depends on the padding: both change bits.
    Here each query has products of its own, and the softmax's sum is a product with the mask, whose padded
    terms are exact zeros at the end of the sum. With `S` padded to a multiple of 8 no bit moves. What is shared by
    all queries stands on the left: a right operand without a batch of its own would let ONNX Runtime fold the
    queries of a lone row into one matrix.
    """
    keys = memory.unsqueeze(1)  # [B, 1, S, A]
    real = memory_mask.unsqueeze(1).unsqueeze(3)  # [B, 1, S, 1]
    scores = keys @ query.unsqueeze(-1)  # [B, 1, S, A] @ [B, T, A, 1] -> [B, T, S, 1]
    scores = torch.where(real, scores, torch.full((), float("-inf")))
    weights = torch.exp(scores - scores.amax(dim=2, keepdim=True))  # [B, T, S, 1], exact zeros where padded
    total = real.transpose(2, 3).to(weights.dtype) @ weights  # [B, 1, 1, S] @ [B, T, S, 1] -> [B, T, 1, 1]
    attended = keys.transpose(2, 3) @ weights  # [B, 1, A, S] @ [B, T, S, 1] -> [B, T, A, 1]
    return (attended / total).squeeze(3)
