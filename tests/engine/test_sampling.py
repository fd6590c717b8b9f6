"""The most likely tokens and draws among them, compared with simple references."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.engine.decoding import FloatArray, FloatRow, Sampling, sample_batch, top_k
from service.engine.sampling import uniform
from tests.engine.drawn import EXTREME_ROWS, POSITIONS, ROWS, SAMPLINGS, TIED_ROWS, batches, orders
from tests.engine.drawn import positions as many_positions
from tests.engine.drawn import samplings as many_samplings
from tests.engine.one_row import sample

MODEST = settings(max_examples=60, deadline=None)


def row(values: list[float]) -> FloatRow:
    return np.array(values, dtype=np.float32)


def shares(logits: FloatRow, sampling: Sampling) -> list[tuple[int, float]]:
    """Returns tokens with their probabilities after temperature and top-k, most likely first."""
    scaled = [float(logit) / sampling.temperature for logit in logits]
    order = sorted(range(len(scaled)), key=lambda token: (-scaled[token], token))[: sampling.top_k]
    weights = [math.exp(scaled[token] - max(scaled)) for token in order]
    return [(token, weight / math.fsum(weights)) for token, weight in zip(order, weights, strict=True)]


def totals(given: list[tuple[int, float]]) -> list[float]:
    """Returns cumulative probabilities: of each token and those before it."""
    return [math.fsum(share for _, share in given[: count + 1]) for count in range(len(given))]


def permitted(logits: FloatRow, sampling: Sampling) -> list[tuple[int, float]]:
    """Returns the tokens that may be drawn, with their probabilities, most likely first: temperature, then top-k, then
    top-p."""
    given = shares(logits, sampling)
    if sampling.top_p < 1.0:
        kept = next((count for count, total in enumerate(totals(given), 1) if total >= sampling.top_p), len(given))
        given = given[:kept]
    whole = totals(given)[-1]
    return [(token, share / whole) for token, share in given]


def drawn_at(positions: range, logits: FloatRow, sampling: Sampling) -> list[int]:
    """Returns the tokens that are drawn from the same logits [V] at these positions."""
    tokens = sample_batch(np.tile(logits, (len(positions), 1)), [sampling] * len(positions), positions)
    return [int(token) for token in tokens]


def is_clear_of(threshold: float, given: list[tuple[int, float]]) -> bool:
    """Returns whether rounding cannot change on which side of the threshold a token falls."""
    return all(abs(total - threshold) > 1e-9 for total in totals(given))


@given(TIED_ROWS, st.integers(1, 12))
@MODEST
def test_top_k_is_ordered_by_likelihood_and_equals_by_id(values: list[float], k: int) -> None:
    expected = sorted(range(len(values)), key=lambda token: (-values[token], token))[:k]
    assert top_k(row(values), k).tolist() == expected


@given(ROWS | TIED_ROWS, SAMPLINGS, POSITIONS)
@settings(max_examples=150, deadline=None)
def test_a_draw_is_the_filtered_distribution_inverted(values: list[float], sampling: Sampling, position: int) -> None:
    """The draw selects the first token whose cumulative probability exceeds it. The sum starts at the most likely
    token, or at token 0 without a filter."""
    logits = row(values)
    assume(sampling.top_p == 1.0 or is_clear_of(sampling.top_p, shares(logits, sampling)))
    allowed = permitted(logits, sampling)
    if not sampling.is_filtered:
        allowed.sort()
    drawn = float(uniform(np.array([sampling.seed], np.uint64), np.array([position], np.uint64))[0])
    assume(is_clear_of(drawn, allowed))
    expected = next(token for (token, _), total in zip(allowed, totals(allowed), strict=True) if total > drawn)
    assert sample(logits, sampling, position) == expected


@pytest.mark.parametrize(
    ("sampling", "tokens"),
    [
        (Sampling(), {0, 1, 2, 3}),
        (Sampling(top_k=3), {0, 1, 2}),
        (Sampling(top_p=0.65), {0, 1}),
        (Sampling(top_p=0.75), {0, 1, 2}),
        # 0.4 of all four tokens is below 0.5; 0.4 of the two tokens after top-k is not
        (Sampling(top_k=2, top_p=0.5), {0}),
        (Sampling(top_p=0.5), {0, 1}),
        # a high temperature flattens the distribution before top-p, a low one sharpens it
        (Sampling(temperature=100.0, top_p=0.6), {0, 1, 2}),
        (Sampling(temperature=0.1, top_p=0.6), {0}),
        (Sampling(top_k=1), {0}),
        (Sampling(top_p=1e-9), {0}),
    ],
)
def test_filters_apply_in_the_order_temperature_top_k_top_p(sampling: Sampling, tokens: set[int]) -> None:
    """With the probabilities 0.4, 0.3, 0.2 and 0.1, exactly these tokens are drawn."""
    logits = np.log(row([0.4, 0.3, 0.2, 0.1]))
    assert set(drawn_at(range(200), logits, sampling)) == tokens


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=11),
        Sampling(seed=12, temperature=2.5),
        Sampling(seed=13, top_k=5),
        Sampling(seed=14, top_k=6, top_p=0.95),
        Sampling(seed=2**64 - 1, temperature=0.7, top_p=0.98),
    ],
)
def test_draws_at_successive_positions_follow_the_distribution(sampling: Sampling) -> None:
    """Pearson's chi-square is below its 99.9 % quantile. The seed is fixed, so the result is always the same."""
    logits = row([1.0, 0.3, 2.0, -0.5, 0.9, 0.0, 1.4])
    allowed = permitted(logits, sampling)
    draws = 4000
    counts = Counter(drawn_at(range(draws), logits, sampling))
    assert set(counts) <= {token for token, _ in allowed}
    statistic = sum((counts[token] - draws * share) ** 2 / (draws * share) for token, share in allowed)
    quantiles = {3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46}
    assert statistic < quantiles[len(allowed) - 1]


def test_different_seeds_draw_independently_at_one_position() -> None:
    """The chi-square of the pairs that two seeds draw at the same positions is below its 99.9 % quantile."""
    logits = row([0.0, 0.0, 0.0])
    first, second = (drawn_at(range(1800), logits, Sampling(seed=seed)) for seed in (1, 2))
    pairs = Counter(zip(first, second, strict=True))
    statistic = sum((pairs[left, right] - 200) ** 2 / 200 for left in range(3) for right in range(3))
    assert statistic < 26.12


@given(ROWS, SAMPLINGS, POSITIONS)
@MODEST
def test_the_same_seed_and_position_draw_the_same_token(values: list[float], sampling: Sampling, position: int) -> None:
    assert sample(row(values), sampling, position) == sample(row(values), sampling, position)


def test_positions_draw_differently() -> None:
    """Two sequences of 64 draws from 1,000 equally likely tokens have almost nothing in common."""
    logits = np.zeros(1000, np.float32)
    first = drawn_at(range(64), logits, Sampling(seed=5))
    later = drawn_at(range(64, 128), logits, Sampling(seed=5))
    assert len(set(first)) > 50
    assert sum(a == b for a, b in zip(first, later, strict=True)) < 3


@given(ROWS | TIED_ROWS, st.floats(1e-12, 1e-3), st.integers(0, 1000))
@MODEST
def test_a_tiny_top_p_keeps_the_best_token(values: list[float], top_p: float, position: int) -> None:
    logits = row(values)
    assert sample(logits, Sampling(top_p=top_p), position) == int(logits.argmax())


@given(ROWS | TIED_ROWS, st.integers(0, 1000))
@MODEST
def test_a_tiny_temperature_is_greedy_among_the_best(values: list[float], position: int) -> None:
    drawn = sample(row(values), Sampling(temperature=1e-12), position)
    assert values[drawn] == pytest.approx(max(values), abs=1e-9)


@given(EXTREME_ROWS, SAMPLINGS, st.integers(0, 1000))
@MODEST
def test_extreme_logits_are_ordinary(values: list[float], sampling: Sampling, position: int) -> None:
    """A token whose logit is -inf is never drawn."""
    logits = row(values)
    assume(sampling.top_p == 1.0 or is_clear_of(sampling.top_p, shares(logits, sampling)))
    drawn = sample(logits, sampling, position)
    assert drawn in {token for token, share in permitted(logits, sampling) if share > 0.0}


@given(batches(), st.integers(1, 40))
@MODEST
def test_top_k_of_a_batch_is_a_stable_sort_of_each_row(logits: FloatArray, k: int) -> None:
    with np.errstate(all="ignore"):
        expected = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top_k(logits, k), expected)


@given(batches(), st.data())
@MODEST
def test_a_row_is_drawn_alone_as_in_any_batch(logits: FloatArray, data: st.DataObject) -> None:
    """The other rows and their sampling do not matter."""
    count = len(logits)
    samplings, positions = data.draw(many_samplings(count)), data.draw(many_positions(count))
    order = data.draw(orders(count))
    alone = [sample(*each) for each in zip(logits, samplings, positions, strict=True)]
    assert sample_batch(logits, samplings, positions).tolist() == alone
    shuffled = sample_batch(logits[order], [samplings[at] for at in order], [positions[at] for at in order])
    assert shuffled.tolist() == [alone[at] for at in order]


@pytest.mark.parametrize("size", [64, 1000, 8000, 40_000])
def test_a_row_is_drawn_alone_as_in_a_batch_of_many_blocks(size: int) -> None:
    kinds = [Sampling(), Sampling(top_k=7), Sampling(top_p=0.8), Sampling(0.5, 100, 0.9), Sampling(top_k=10**6)]
    samplings = [Sampling(kind.temperature, kind.top_k, kind.top_p, seed) for seed in range(5) for kind in kinds]
    logits = np.random.default_rng(size).standard_normal((len(samplings), size)).astype(np.float32) * 3
    positions = list(range(len(samplings)))
    alone = [sample(*each) for each in zip(logits, samplings, positions, strict=True)]
    assert sample_batch(logits, samplings, positions).tolist() == alone
    np.testing.assert_array_equal(top_k(logits, 9), np.argsort(-logits, axis=-1, kind="stable")[:, :9])


def test_rows_that_are_not_contiguous_are_as_good() -> None:
    every = np.random.default_rng(3).standard_normal((6, 4, 50)).astype(np.float32)
    samplings = [Sampling(seed=seed, top_p=0.9 if seed % 2 else 1.0) for seed in range(6)]
    strided, reversed_ids = every[:, 1], every[:, 1, ::-1]
    for logits in (strided, reversed_ids):
        copied = logits.copy()
        np.testing.assert_array_equal(
            sample_batch(logits, samplings, range(6)), sample_batch(copied, samplings, range(6))
        )
        np.testing.assert_array_equal(top_k(logits, 5), top_k(copied, 5))


@pytest.mark.parametrize("awkward", [[math.nan] * 3, [1.0, math.nan, 2.0], [0.0, math.inf, math.inf], [-math.inf] * 3])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=2), Sampling(top_p=0.5), Sampling(5e-324)])
def test_a_row_without_a_distribution_gives_its_argmax(awkward: list[float], sampling: Sampling) -> None:
    assert sample(row(awkward), sampling, 4) == int(row(awkward).argmax())


@pytest.mark.parametrize("sampling", [Sampling(5e-324), Sampling(5e-324, top_k=2), Sampling(5e-324, top_p=0.5)])
def test_the_smallest_temperature_gives_the_argmax(sampling: Sampling) -> None:
    assert sample(row([1e30, 3e38, -3e38, 2.0]), sampling, 4) == 1


def test_nothing_given_is_nothing_drawn() -> None:
    assert sample_batch(np.empty((0, 5), np.float32), [], []).shape == (0,)
    assert top_k(np.empty((0, 5), np.float32), 2).shape == (0, 2)
