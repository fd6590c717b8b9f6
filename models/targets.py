"""Targets for teacher forcing: what a decoder reads, and what it is to answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def teacher_forced(targets: Sequence[Sequence[int]], *, pad_id: int, bos_id: int, eos_id: int) -> tuple[Tensor, Tensor]:
    """Returns a batch of targets as inputs [B, T], which begin with the start token, and as expected tokens [B, T],
    which end with the end token. T is one more than the longest target; `pad_id` fills the rest."""
    longest = max(map(len, targets)) + 1
    inputs = torch.full((len(targets), longest), pad_id)
    expected = torch.full((len(targets), longest), pad_id)
    for row, target in enumerate(targets):
        ids = torch.tensor(target)
        inputs[row, 0] = bos_id
        inputs[row, 1 : len(target) + 1] = ids
        expected[row, : len(target)] = ids
        expected[row, len(target)] = eos_id
    return inputs, expected
