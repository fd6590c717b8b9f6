"""Chooses tokens from logits: pure functions of a batch of rows, in which no row depends on another. `sampling` has the
random draws and their options, `beam` the searches.

1. A row's result has the same bits alone, in any batch and at any place in it. So reductions run along the last axis
   of a contiguous array, one row at a time in a fixed order. Sums that decide a draw are running sums, because their
   prefixes do not depend on the array's length. All other operations are element by element.
2. Nothing here raises or warns, whatever the logits are. A row with NaN, with +inf, or with only -inf has no
   distribution: its choice is its argmax (in NumPy the first NaN, if there is one), whatever its decoding is.
3. Equal logits rank by token id, the lowest first.

`R` is the number of rows, `V` the vocabulary's size, `T` the number of target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np

from service.engine.sampling import FloatArray, FloatRow, IntArray, Sampling, sample_batch, top_k

__all__ = [
    "Beam",
    "Choice",
    "Decoding",
    "FinishReason",
    "FloatArray",
    "FloatRow",
    "IntArray",
    "Sampling",
    "choose_batch",
    "log_softmax",
    "sample_batch",
    "score",
    "top_k",
]

_quiet = np.errstate(invalid="ignore", over="ignore")


class FinishReason(Enum):
    """Why a generation ended: the end token, one of its stop tokens, or its limit of tokens."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes the name, in Python

    EOS = "eos"
    STOP = "stop"
    MAX_TOKENS = "max_tokens"


class Beam(NamedTuple):
    """Search for the likeliest sequences. beam_size: 1 or more, hypotheses followed at once; length_penalty: -10 to 10;
    num_best: number of results, 1 to beam_size."""

    beam_size: int
    length_penalty: float = 1.0
    num_best: int = 1


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a generation chooses tokens."""

    max_tokens: int
    sampling: Sampling | None = None
    """None: greedy."""
    log_probabilities: bool = False
    """Whether to report the log-probability of each token."""
    repetition_penalty: float = 1.0
    """Above 0; 1 is no penalty."""
    min_tokens: int = 0
    """0 to max_tokens: how many tokens are generated before the end token or a stop token may be chosen."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens, 0 to V - 1, that end the generation as the end token does."""
    beam: Beam | None = None
    """Search instead; excludes sampling and repetition_penalty."""
    is_plain: bool = field(init=False, repr=False, compare=False)
    """Whether the choice is always the argmax of the logits. Stored, because every row of every batch reads it."""

    def __post_init__(self) -> None:
        is_plain = self.sampling is None and self.repetition_penalty == 1.0 and self.min_tokens == 0
        object.__setattr__(self, "is_plain", is_plain)

    def finish_reason(self, token: int | bytes, num_produced: int, eos_id: int | None) -> FinishReason | None:
        """Returns why the generation ends with a token just chosen, or None if it continues.

        num_produced: tokens, or vectors, of the generation, including this one. An end token or a stop token is not
        part of the generation's output.
        """
        if token == eos_id:
            return FinishReason.EOS
        if token in self.stop_ids:
            return FinishReason.STOP
        return FinishReason.MAX_TOKENS if num_produced >= self.max_tokens else None


@dataclass(slots=True, eq=False)
class Choice:
    """The input of one row's choice of its next token. A generation may keep it and update it after each token."""

    decoding: Decoding
    position: int
    """Of the session, 0 to 2**64 - 1. A random draw depends on this and on the seed only."""
    num_produced: int = 0
    """Tokens generated so far."""
    seen: IntArray | None = None
    """[any number] token ids in the sequence so far, for the repetition penalty. Duplicates change only the cost. None:
    no penalty."""
    eos_id: int | None = None
    """The model's end token, if it has one."""

    def advance(self, token: int) -> None:
        """Updates the choice after `token` was chosen and does not end the generation."""
        self.position += 1
        self.num_produced += 1
        if self.decoding.repetition_penalty != 1.0:
            seen = np.empty(0, np.int64) if self.seen is None else self.seen
            self.seen = np.unique(np.append(seen, token))


def choose_batch(logits: FloatArray, choices: Sequence[Choice]) -> tuple[IntArray, FloatArray]:
    """Chooses the next token of each row. logits: [R, V].

    Returns [R] token ids, and [R] their log-probabilities under the model alone, without penalty or filters; NaN in
    rows that did not ask. If every permitted token is impossible (-inf), token 0 is chosen, forbidden or not.
    """
    logits = np.ascontiguousarray(logits)
    tokens = logits.argmax(axis=-1)
    log_probabilities = np.full(len(choices), np.nan, np.float32)
    special = [row for row, choice in enumerate(choices) if not choice.decoding.is_plain]
    if special:
        tokens[special] = _choose_special(logits[special], [choices[row] for row in special])
    asked = [row for row, choice in enumerate(choices) if choice.decoding.log_probabilities]
    if asked:
        log_probabilities[asked] = score(logits[asked], tokens[asked])
    return tokens, log_probabilities


@_quiet
def log_softmax(logits: FloatArray) -> FloatArray:
    """Returns the natural log-probabilities of [R, V] or [V] logits, none above 0, in the same shape; NaN where a row
    has no distribution."""
    shifted, log_totals = _shift(logits)
    return shifted - log_totals


@_quiet
def score(logits: FloatArray, targets: IntArray) -> FloatArray:
    """Returns the log-probability of each token of a given target (teacher forcing).

    logits: [T, V]; targets: [T] tokens, 0 to V - 1, for each row of logits the token that follows. Returns [T], with
    the same bits as `log_softmax`.
    """
    shifted, log_totals = _shift(logits)
    return shifted[np.arange(len(targets)), targets] - log_totals[:, 0]


def _shift(logits: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Returns [R, V] or [V] logits minus their row's maximum, and [R, 1] or [1] the log of the sum of their
    exponentials, 0 or more."""
    logits = np.ascontiguousarray(logits)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted, np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@_quiet
def _choose_special(logits: FloatArray, choices: Sequence[Choice]) -> IntArray:
    """Chooses in rows that may not take the argmax. logits: [R, V], overwritten. Returns [R] token ids."""
    _penalise(logits, choices)
    _forbid_ends(logits, choices)
    tokens: IntArray = logits.argmax(axis=-1)
    sampled = [(row, one.decoding.sampling) for row, one in enumerate(choices) if one.decoding.sampling is not None]
    if sampled:
        rows = [row for row, _ in sampled]
        samplings = [sampling for _, sampling in sampled]
        tokens[rows] = sample_batch(logits[rows], samplings, [choices[row].position for row in rows])
    return tokens


def _penalise(logits: FloatArray, choices: Sequence[Choice]) -> None:
    """Applies the repetition penalty to the logits of tokens in `seen`: positive logits are divided by it, negative
    ones multiplied (Keskar et al. 2019, CTRL, section 4.1, in its sign-aware form that is in general use)."""
    found = [
        (row, choice.decoding.repetition_penalty, choice.seen)
        for row, choice in enumerate(choices)
        if choice.seen is not None and choice.decoding.repetition_penalty != 1.0
    ]
    if not found:
        return
    token_ids = np.concatenate([seen for _, _, seen in found])
    counts = [len(seen) for _, _, seen in found]
    rows = np.repeat([row for row, _, _ in found], counts)
    penalties = np.repeat([penalty for _, penalty, _ in found], counts)
    values = logits[rows, token_ids].astype(np.float64)
    logits[rows, token_ids] = np.where(values > 0.0, values / penalties, values * penalties)


def _forbid_ends(logits: FloatArray, choices: Sequence[Choice]) -> None:
    """Makes end token and stop tokens impossible in rows that have not reached min_tokens."""
    for row, choice in enumerate(choices):
        if choice.num_produced < choice.decoding.min_tokens:
            ends = [*choice.decoding.stop_ids] if choice.eos_id is None else [*choice.decoding.stop_ids, choice.eos_id]
            logits[row, ends] = -np.inf
