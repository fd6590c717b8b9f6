"""Strategies for logits, samplings and choices. Each draws bytes and looks values up by them.

To draw bytes costs a tenth of what it costs to draw numbers, and most of the time of a small test is drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from hypothesis import strategies as st

from service.engine.decoding import Choice, Decoding, FloatArray, FloatRow, Sampling

T = TypeVar("T")

MAX_SIZE = 12
"""The longest of the rows, and the highest `top_k`."""
_NUMBERS = np.linspace(-20, 20, 256, dtype=np.float32)
_TIED = np.array([-1.0, 0.0, 0.5], np.float32)
_EXTREME = np.array([1e30, -1e30, 3.4e38, -3.4e38, -math.inf, 0.0, -3.0, 2.0], np.float32)
_AWKWARD = [math.nan, -math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 1e-40, 0.0, -0.0, 1.0, 2.5]
_LOGITS = np.array([*_AWKWARD * 8, *np.linspace(-20, 20, 168)], np.float32)
_TEMPERATURES = np.geomspace(0.05, 10, 256).tolist()
_TOP_PS = [1.0] * 128 + np.linspace(0.01, 1.0, 128).tolist()
_PENALTIES = [1.0] * 128 + np.linspace(0.1, 5, 128).tolist()
_NUM_SAMPLING_BYTES, _NUM_CHOICE_BYTES = 11, 36


def _sampling(drawn: bytes) -> Sampling:
    return Sampling(
        temperature=_TEMPERATURES[drawn[0]],
        top_k=drawn[1] % MAX_SIZE + 1 if drawn[1] & 128 else None,
        top_p=_TOP_PS[drawn[2]],
        seed=int.from_bytes(drawn[3:11], "big"),
    )


def _choice(drawn: bytes, size: int) -> Choice:
    """size: of the vocabulary."""
    sampled, scored, penalty, least, stops, first, second, produced, seen, end = drawn[:10]
    decoding = Decoding(
        max_tokens=20,
        sampling=_sampling(drawn[10:21]) if sampled & 1 else None,
        log_probabilities=bool(scored & 1),
        repetition_penalty=_PENALTIES[penalty],
        min_tokens=least % 4,
        stop_ids=frozenset([first % size, second % size][: stops % 3]),
    )
    return Choice(
        decoding,
        position=int.from_bytes(drawn[21:26], "big"),
        num_produced=produced % 6,
        seen=np.frombuffer(drawn[26 : 26 + seen % 10], np.uint8).astype(np.int64) % size if seen & 128 else None,
        eos_id=end % size if end & 128 else None,
    )


def _many(make: Callable[[bytes], T], num_bytes: int, count: int) -> st.SearchStrategy[list[T]]:
    """Draws `count` values, of `num_bytes` each."""

    def parts(drawn: bytes) -> list[T]:
        return [make(drawn[begin : begin + num_bytes]) for begin in range(0, len(drawn), num_bytes)]

    return st.binary(min_size=num_bytes * count, max_size=num_bytes * count).map(parts)


def _row(table: FloatRow) -> st.SearchStrategy[list[float]]:
    drawn = st.binary(min_size=1, max_size=MAX_SIZE)
    return drawn.map(lambda values: table[np.array([*values]) % len(table)].tolist())


ROWS = _row(_NUMBERS)
"""One row of logits."""
TIED_ROWS = _row(_TIED)
"""One row of logits, many of which are equal."""
EXTREME_ROWS = _row(_EXTREME).filter(lambda values: max(values) > -math.inf)
"""One row of logits near the limits of their type, some of them -inf but not all."""
SAMPLINGS = st.binary(min_size=_NUM_SAMPLING_BYTES, max_size=_NUM_SAMPLING_BYTES).map(_sampling)
POSITIONS = st.integers(0, 2**40)


def samplings(count: int) -> st.SearchStrategy[list[Sampling]]:
    """Draws as many samplings."""
    return _many(_sampling, _NUM_SAMPLING_BYTES, count)


def positions(count: int) -> st.SearchStrategy[list[int]]:
    """Draws as many positions, 0 to 2**40 - 1."""
    return _many(lambda drawn: int.from_bytes(drawn, "big"), 5, count)


@st.composite
def batches(draw: st.DrawFn, max_size: int = 40) -> FloatArray:
    """Returns [R, V] logits, some of them NaN or infinite."""
    size, num_rows = draw(st.integers(1, max_size)), draw(st.integers(1, 9))
    drawn = draw(st.binary(min_size=num_rows * size, max_size=num_rows * size))
    return _LOGITS[np.frombuffer(drawn, np.uint8)].reshape(num_rows, size)


@st.composite
def questions(draw: st.DrawFn, size: int = 11) -> tuple[FloatArray, list[Choice]]:
    """Returns [R, V] logits, some of them NaN or infinite, and the choice for each row. size: V."""
    count = draw(st.integers(1, 9))
    drawn = draw(st.binary(min_size=count * size, max_size=count * size))
    logits = _LOGITS[np.frombuffer(drawn, np.uint8)].reshape(count, size)
    return logits, draw(_many(lambda part: _choice(part, size), _NUM_CHOICE_BYTES, count))


def orders(count: int) -> st.SearchStrategy[list[int]]:
    """Draws an order of `count` things."""
    return st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).permutation(count).tolist())
