"""The simulated model, computed with integers: its hidden state is a hash of every consumed token.

Two sessions that consumed different tokens have different states, so the logits of one answer show what a session has
consumed. `Hidden` is the plain model. `StepGraph` and `ReadoutGraph` compute the same for batches, instead of ONNX
Runtime's sessions.

Shapes: `B` rows, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

VOCABULARY_SIZE = 8
EOS_ID = 2
BOS_ID = 1

_PRIMES = (65521, 65519)
_FACTORS = (31, 37)
_TOKEN_FACTORS = (7, 11)
_CONSTANTS = (1, 3)


class Hidden(NamedTuple):
    """The state of a session: its tensor `hidden`, as integers."""

    first: int
    second: int

    def step(self, token: int) -> Hidden:
        """Returns the state after one more token."""
        return Hidden(
            (self.first * _FACTORS[0] + token * _TOKEN_FACTORS[0] + _CONSTANTS[0]) % _PRIMES[0],
            (self.second * _FACTORS[1] + token * _TOKEN_FACTORS[1] + _CONSTANTS[1]) % _PRIMES[1],
        )

    @property
    def logits(self) -> tuple[float, ...]:
        """[V] logits of the next token: multiples of 1/8, which are exact in 32 bits."""
        return _logits_of(self)


ZERO = Hidden(0, 0)


@cache
def _logits_of(hidden: Hidden) -> tuple[float, ...]:
    one, other = hidden
    return tuple(((one * (v + 3) + other * (v * v + 5)) % 97) / 8.0 - 6.0 for v in range(VOCABULARY_SIZE))


class StepGraph:
    """Runs a batch of steps as an ONNX Runtime session does. fails: whether a run must raise."""

    def __init__(self, fails: Callable[[], bool]) -> None:
        self._fails = fails

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """inputs: `hidden` [1, B, 2], `tokens` [B, T], `lengths` [B]. outputs: any of `next_hidden` [1, B, 2] and
        `logits` [B, T, V]. Raises RuntimeError if the run must fail."""
        if self._fails():
            raise RuntimeError("the simulated graph fails")
        hidden = inputs["hidden"][0].astype(np.int64)
        tokens, lengths = inputs["tokens"], inputs["lengths"]
        rows = np.zeros((*tokens.shape, VOCABULARY_SIZE), np.float32)
        for at in range(tokens.shape[1]):
            following = (hidden * _FACTORS + tokens[:, at, np.newaxis] * _TOKEN_FACTORS + _CONSTANTS) % _PRIMES
            hidden = np.where((at < lengths)[:, np.newaxis], following, hidden)
            rows[:, at] = _logits(hidden)
        given = {"next_hidden": hidden.astype(np.float32)[np.newaxis], "logits": rows}
        return [given[name] for name in outputs]


class ReadoutGraph:
    """Computes the next logits from a state."""

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """inputs: `hidden` [1, B, 2]. outputs: only `logits`, [B, V]."""
        return [_logits(inputs["hidden"][0].astype(np.int64))]


_V = np.arange(VOCABULARY_SIZE)


def _logits(hidden: NDArray[Any]) -> NDArray[Any]:
    mixed = hidden[:, :1] * (_V + 3) + hidden[:, 1:] * (_V * _V + 5)
    rows: NDArray[Any] = ((mixed % 97) / 8.0 - 6.0).astype(np.float32)
    return rows
