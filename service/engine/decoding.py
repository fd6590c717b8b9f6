"""From logits to tokens: pure functions of one row each, so that a row's choice cannot depend on its batch.

`V` is the vocabulary's size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
FloatRow = FloatArray
"""One dimension, [V]."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Random choice. temperature > 0; top_k: 1 to V, None for all; 0 < top_p <= 1; seed: 0 to 2**64 - 1.

    The filters apply in the order temperature, top-k, top-p.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a generation chooses tokens. sampling: None is greedy. log_probabilities: report each token's."""

    max_tokens: int
    sampling: Sampling | None = None
    log_probabilities: bool = False


def log_softmax(logits: FloatRow) -> FloatRow:
    """[V] logits to [V] natural log-probabilities."""
    shifted = logits - logits.max()
    result: FloatRow = shifted - np.log(np.exp(shifted).sum())
    return result


def greedy(logits: FloatRow) -> int:
    """The most likely token; of equally likely ones the lowest id."""
    return int(logits.argmax())


def top_k(logits: FloatRow, k: int) -> NDArray[np.int64]:
    """The k most likely tokens [k], most likely first; of equally likely ones the lowest id first."""
    return np.argsort(-logits, kind="stable")[:k]


def sample(logits: FloatRow, sampling: Sampling, position: int) -> int:
    """Draws a token from [V] logits.

    The draw is a Philox stream (Salmon et al. 2011) keyed by the seed at a counter given by the position: it depends on
    nothing else, so a session draws the same token in any batch, and again after it was resumed.
    """
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k is not None:
        order = order[: sampling.top_k]
    scaled = logits[order].astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled[0])
    cumulative = np.cumsum(weights / weights.sum())
    if sampling.top_p < 1.0:
        # the shortest prefix that reaches top_p; never empty
        kept = int(np.searchsorted(cumulative, sampling.top_p)) + 1
        cumulative = cumulative[:kept]
    stream = np.random.Generator(np.random.Philox(key=sampling.seed, counter=position))
    drawn = int(np.searchsorted(cumulative, stream.random() * cumulative[-1], side="right"))
    return int(order[min(drawn, len(cumulative) - 1)])


def choose(logits: FloatRow, decoding: Decoding, position: int) -> tuple[int, float | None]:
    """The next token, and its log-probability under the unfiltered model when it was asked for."""
    sampling = decoding.sampling
    token = greedy(logits) if sampling is None else sample(logits, sampling, position)
    return token, float(log_softmax(logits)[token]) if decoding.log_probabilities else None
