"""The choice and the draw of one row of logits, with the functions that the engine calls for a batch."""

from __future__ import annotations

import numpy as np

from service.engine.decoding import Choice, Decoding, FloatRow, IntArray, Sampling, choose_batch, sample_batch


def choose(
    logits: FloatRow,
    decoding: Decoding,
    position: int,
    *,
    num_produced: int = 0,
    seen: IntArray | None = None,
    eos_id: int | None = None,
) -> tuple[int, float | None]:
    """Returns the token of one row [V], and its log-probability if `decoding` asks for it."""
    choice = Choice(decoding, position, num_produced, seen, eos_id)
    tokens, log_probabilities = choose_batch(logits[np.newaxis], [choice])
    return int(tokens[0]), float(log_probabilities[0]) if decoding.log_probabilities else None


def sample(logits: FloatRow, sampling: Sampling, position: int) -> int:
    """Returns the token that is drawn from one row [V]."""
    return int(sample_batch(logits[np.newaxis], [sampling], [position])[0])
