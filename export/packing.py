"""Replaces PyTorch's packing of sequences by functions that return the whole sequence.

`nn.utils.rnn.pack_padded_sequence` omits steps past a row's length. A session has no such steps: it runs each step that
it is fed. So during an export these functions pass their input on, and the recurrent layers get the lengths of rows
from `export.exportable`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import rnn


def _pack_padded(input: Tensor, *_: object, **__: object) -> Tensor:  # `input` is PyTorch's name of the argument
    return input


def _pad_packed(sequence: Tensor, batch_first: bool = False, **_: object) -> tuple[Tensor, Tensor]:  # PyTorch's names
    rows, steps = sequence.shape[:2] if batch_first else sequence.shape[1::-1]
    return sequence, torch.full((rows,), steps)


_INSTEAD: Sequence[tuple[Callable[..., Any], Callable[..., Any]]] = (
    (rnn.pack_padded_sequence, _pack_padded),
    (rnn.pad_packed_sequence, _pad_packed),
)


@contextlib.contextmanager
def unpacked() -> Iterator[None]:
    """Replaces the packing functions inside its body, in every module that has imported them. For one thread only."""
    changed = []
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            for packs, instead in _INSTEAD:
                if value is packs and module is not sys.modules[__name__]:
                    changed.append((module, name, value))
                    setattr(module, name, instead)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)
