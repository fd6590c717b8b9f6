"""Decodes the values that a step of a transducer returns: see `service.repository.steps.EmitsSpec`. Pure."""

from __future__ import annotations

from typing import NamedTuple

from service.engine.decoding import FloatRow


class Emitted(NamedTuple):
    """The tokens of one step, their natural log-probabilities, and how many encoded frames emitted their maximum."""

    token_ids: list[int]
    log_probabilities: list[float]
    num_limited: int


def emitted(values: FloatRow) -> Emitted:
    """Decodes the values of one step, [2 + 2 * capacity]: count, num_limited, token ids, log-probabilities."""
    count, num_limited = int(values[0]), int(values[1])
    capacity = len(values) // 2 - 1
    ids, scores = values[2 : 2 + count], values[2 + capacity : 2 + capacity + count]
    return Emitted(ids.astype(int).tolist(), scores.tolist(), num_limited)
