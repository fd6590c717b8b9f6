"""The random generator is the published Philox, and a row's numbers do not depend on other rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.sampling import uniform

PAIRS = (
    st.integers(1, 20)
    .flatmap(lambda count: st.binary(min_size=16 * count, max_size=16 * count))
    .map(lambda drawn: np.frombuffer(drawn, np.uint64).reshape(-1, 2).tolist())
)
"""Seeds and positions, as bytes: to draw many numbers takes longer than to compare them."""


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """Returns the result of the paper's rounds, computed with Python's integers."""
    for _ in range(10):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            second >> 32 ^ counter[1] ^ key[0],
            second & 0xFFFFFFFF,
            first >> 32 ^ counter[3] ^ key[1],
            first & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def plain_uniform(seed: int, position: int) -> float:
    words = plain_philox([position & 0xFFFFFFFF, position >> 32, 0, 0], [seed & 0xFFFFFFFF, seed >> 32])
    return float((words[1] << 32 | words[0]) >> 11) / 2**53


def drawn(pairs: list[tuple[int, int]]) -> list[float]:
    seeds, positions = np.array(pairs, np.uint64).T
    return [float(number) for number in uniform(seeds, positions)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers_of_random123_come_out(counter: list[int], key: list[int], expected: list[int]) -> None:
    assert plain_philox(counter, key) == expected


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_each_row_is_that_of_the_plain_rounds_in_any_batch(pairs: list[tuple[int, int]]) -> None:
    expected = [plain_uniform(seed, position) for seed, position in pairs]
    assert drawn(pairs) == expected
    assert drawn(pairs[::-1]) == expected[::-1]
    assert [drawn([pair])[0] for pair in pairs] == expected


def test_no_rows_give_no_numbers() -> None:
    nothing = np.empty(0, np.uint64)
    assert uniform(nothing, nothing).shape == (0,)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_numbers_lie_evenly_between_zero_and_one(seed: int) -> None:
    """The chi-square statistic over 16 bins of 64,000 positions is below its 99.9 % quantile."""
    numbers = uniform(np.full(64_000, seed, np.uint64), np.arange(64_000, dtype=np.uint64))
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    counts = np.bincount((numbers * 16).astype(np.int64), minlength=16)
    assert ((counts - 4000.0) ** 2 / 4000.0).sum() < 37.70


def test_neighbouring_seeds_and_positions_have_nothing_in_common() -> None:
    grid = np.arange(100, dtype=np.uint64)
    numbers = uniform(np.repeat(grid, 100), np.tile(grid, 100))
    assert len(np.unique(numbers)) == 10_000
    table = numbers.reshape(100, 100)
    for one, other in ((table[:-1], table[1:]), (table[:, :-1], table[:, 1:]), (table, table.T)):
        off = ~np.eye(100, dtype=bool)[: one.shape[0], : one.shape[1]]
        assert abs(np.corrcoef(one[off], other[off])[0, 1]) < 0.04


def test_the_upper_half_of_a_seed_or_position_counts() -> None:
    numbers = drawn([(1, 1), (1 + 2**32, 1), (1, 1 + 2**32), (1 + 2**63, 1), (1, 1 + 2**63)])
    assert len(set(numbers)) == 5
