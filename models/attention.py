"""Attention that exports to plain ONNX operators whose reductions all have a fixed order.

So a row's bits do not depend on its batch, its chunk or padding. The memory has the attention's own size `A`, and is
both key and value. Padded positions are masked and add exact zeros.

Shapes: `B` batch, `T` time, `S` source, `H` hidden size, `A` attention size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

AttentionKind = Literal["luong", "bahdanau", "none"]


class LuongAttention(nn.Module):
    """Global attention with the "general" score q W m (Luong, Pham, Manning 2015, equations 7 and 8)."""

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


class BahdanauAttention(nn.Module):
    """Additive attention with the score v tanh(W q + m) (Bahdanau, Cho, Bengio 2014, section 3.1).

    The paper's U h, a projection of the encoder's outputs, is the memory m itself here, and also the value.
    """

    def __init__(self, query_size: int, attention_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_size, attention_size)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def forward(self, query: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """See `LuongAttention.forward`."""
        projected = self.query(query)  # [B, T, A]
        keys = memory.unsqueeze(1)  # [B, 1, S, A]
        fused = torch.tanh(keys + projected.unsqueeze(2))  # [B, T, S, A]
        if torch.onnx.is_in_onnx_export():
            # a sum and not a matrix-vector product, whose bits depend on the number of rows
            scores = (fused * self.score.weight).sum(dim=-1, keepdim=True)  # [B, T, S, 1]
            return _weigh_in_fixed_order(scores, keys, memory_mask)
        scores = self.score(fused).squeeze(-1)  # [B, T, S]
        weights = scores.masked_fill(~memory_mask.unsqueeze(1), float("-inf")).softmax(dim=-1)
        attended: Tensor = weights @ memory
        return attended


def _attend_in_fixed_order(query: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
    """Computes attention as matrix-vector products, one for each query: the same value as softmax(q m') m.

    A matrix-matrix product may split its inner sum differently for another number of queries or another padding. The
    sum in a softmax operator is a tree whose shape depends on the padding. Both change bits. Here each query has its
    own products, and the softmax's sum is a product with the mask, whose padded terms are exact zeros at the end of the
    sum. With `S` padded to a multiple of 8, no bit changes. The operand that all queries share is on the left: if a
    right operand had no batch axis, ONNX Runtime would fold the queries of a single row into one matrix.
    """
    keys = memory.unsqueeze(1)  # [B, 1, S, A]
    scores = keys @ query.unsqueeze(-1)  # [B, 1, S, A] @ [B, T, A, 1] -> [B, T, S, 1]
    return _weigh_in_fixed_order(scores, keys, memory_mask)


def _weigh_in_fixed_order(scores: Tensor, keys: Tensor, memory_mask: Tensor) -> Tensor:
    """Weighs keys [B, 1, S, A] by the softmax of scores [B, T, S, 1] over S. Returns [B, T, A]."""
    real = memory_mask.unsqueeze(1).unsqueeze(3)  # [B, 1, S, 1]
    scores = torch.where(real, scores, torch.full((), float("-inf")))
    weights = torch.exp(scores - scores.amax(dim=2, keepdim=True))  # [B, T, S, 1], exact zeros where padded
    total = real.transpose(2, 3).to(weights.dtype) @ weights  # [B, 1, 1, S] @ [B, T, S, 1] -> [B, T, 1, 1]
    attended = keys.transpose(2, 3) @ weights  # [B, 1, A, S] @ [B, T, S, 1] -> [B, T, A, 1]
    return (attended / total).squeeze(3)
