"""The choice of the next token, penalties and log-probabilities, compared with simple references."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.decoding import (
    Choice,
    Decoding,
    FinishReason,
    FloatArray,
    FloatRow,
    Sampling,
    choose_batch,
    log_softmax,
    score,
)
from tests.engine.drawn import EXTREME_ROWS, ROWS, TIED_ROWS, orders, questions
from tests.engine.one_row import choose, sample

MODEST = settings(max_examples=60, deadline=None)


def row(values: list[float]) -> FloatRow:
    return np.array(values, dtype=np.float32)


def adjusted(logits: FloatRow, choice: Choice) -> FloatRow:
    """Returns the logits after the repetition penalty and after the ban of end tokens, computed token by token."""
    decoding = choice.decoding
    ends = {*decoding.stop_ids, choice.eos_id} if choice.num_produced < decoding.min_tokens else set()
    seen = set() if choice.seen is None else set(choice.seen.tolist())
    values = []
    for token, logit in enumerate(logits.tolist()):
        value = logit
        if token in seen and decoding.repetition_penalty != 1.0:
            value = logit / decoding.repetition_penalty if logit > 0 else logit * decoding.repetition_penalty
        values.append(-math.inf if token in ends else value)
    with np.errstate(over="ignore"):
        return row(values)


def chosen_alone(logits: FloatRow, choice: Choice) -> tuple[int, float | None]:
    return choose(
        logits,
        choice.decoding,
        choice.position,
        num_produced=choice.num_produced,
        seen=choice.seen,
        eos_id=choice.eos_id,
    )


@given(TIED_ROWS)
@MODEST
def test_greedy_takes_the_most_likely_and_of_equals_the_lowest_id(values: list[float]) -> None:
    assert choose(row(values), Decoding(1), 0)[0] == values.index(max(values))


@given(ROWS)
@MODEST
def test_log_softmax_is_that_of_double_precision_and_sums_to_one(values: list[float]) -> None:
    logits = row(values)
    exact = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
    found = log_softmax(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
    assert math.fsum(np.exp(found.astype(np.float64))) == pytest.approx(1.0, abs=1e-5)


def test_log_softmax_of_a_large_vocabulary_sums_to_one() -> None:
    logits = np.random.default_rng(0).standard_normal(50_000).astype(np.float32) * 5
    assert math.fsum(np.exp(log_softmax(logits).astype(np.float64))) == pytest.approx(1.0, abs=1e-4)


@given(EXTREME_ROWS)
@MODEST
def test_log_probabilities_of_extreme_logits_are_ordinary(values: list[float]) -> None:
    """No log-probability is NaN, and the probabilities sum to one."""
    found = log_softmax(row(values))
    assert choose(row(values), Decoding(1), 0)[0] == values.index(max(values))
    assert not np.isnan(found).any()
    assert found.max() <= 0.0
    assert math.fsum(np.exp(found.astype(np.float64))) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 64, 100, 129, 1000, 8193])
def test_log_probabilities_have_the_same_bits_alone_and_in_any_batch(size: int) -> None:
    logits = np.random.default_rng(size).standard_normal((33, size)).astype(np.float32) * 4
    logits[5], logits[6, 0], logits[7] = np.nan, np.inf, -np.inf
    alone = np.stack([log_softmax(each) for each in logits])
    for count in (1, 2, 5, 16, 33):
        np.testing.assert_array_equal(log_softmax(logits[:count]), alone[:count])
    np.testing.assert_array_equal(log_softmax(logits[::-1]), alone[::-1])
    np.testing.assert_array_equal(log_softmax(np.asfortranarray(logits)), alone)


@given(st.data(), st.integers(1, 30), st.integers(1, 9))
@MODEST
def test_the_score_of_a_target_is_its_tokens_log_probabilities(data: st.DataObject, size: int, length: int) -> None:
    """The two are bit-identical."""
    logits = np.random.default_rng(size * 10 + length).standard_normal((length, size)).astype(np.float32)
    targets = data.draw(st.lists(st.integers(0, size - 1), min_size=length, max_size=length))
    expected = [log_softmax(each)[target] for each, target in zip(logits, targets, strict=True)]
    found = score(logits, np.array(targets, np.int64))
    assert found.dtype == np.float32
    assert found.tolist() == expected


def test_choose_returns_the_log_probability_of_the_unfiltered_model() -> None:
    logits = np.log(row([0.4, 0.3, 0.2, 0.1]))
    assert choose(logits, Decoding(1), 0) == (0, None)
    token, log_probability = choose(logits, Decoding(1, log_probabilities=True), 0)
    assert token == 0
    assert log_probability == pytest.approx(math.log(0.4))
    sampling = Sampling(temperature=100.0, top_k=3, seed=3)
    for position in range(20):
        token, log_probability = choose(logits, Decoding(1, sampling, log_probabilities=True), position)
        assert token == sample(logits, sampling, position)
        assert log_probability == pytest.approx(float(log_softmax(logits)[token]))


@given(questions())
@MODEST
def test_a_row_is_chosen_as_its_adjusted_logits_say(question: tuple[FloatArray, list[Choice]]) -> None:
    """The order is penalty, ban, then draw or argmax. The log-probability is that of the unchanged logits."""
    logits, choices = question
    tokens, log_probabilities = choose_batch(logits, choices)
    for each, choice, token, found in zip(logits, choices, tokens.tolist(), log_probabilities, strict=True):
        left, sampling = adjusted(each, choice), choice.decoding.sampling
        assert token == (left.argmax() if sampling is None else sample(left, sampling, choice.position))
        expected = log_softmax(each)[token] if choice.decoding.log_probabilities else np.float32(np.nan)
        np.testing.assert_array_equal(found, expected)


@given(questions(), st.data())
@MODEST
def test_a_row_is_chosen_alone_as_in_any_batch(question: tuple[FloatArray, list[Choice]], data: st.DataObject) -> None:
    """The other rows do not matter, whether they contain NaN and however they choose. The logits do not change."""
    logits, choices = question
    before = logits.copy()
    order = data.draw(orders(len(choices)))
    tokens, log_probabilities = choose_batch(logits[order], [choices[at] for at in order])
    np.testing.assert_array_equal(logits, before)
    for at, token, found in zip(order, tokens.tolist(), log_probabilities.tolist(), strict=True):
        alone, log_probability = chosen_alone(logits[at], choices[at])
        assert token == alone
        np.testing.assert_array_equal(found, math.nan if log_probability is None else log_probability)
    kept = choose_batch(logits, choices)
    np.testing.assert_array_equal(kept[0][order], tokens)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(
    ("logits", "penalty", "seen", "token"),
    [
        ([2.0, 1.5, -1.0], 1.0, [0], 0),
        ([2.0, 1.5, -1.0], 1.5, [0], 1),
        ([2.0, 1.5, -1.0], 1.5, [0, 0, 0], 1),  # the penalty applies once, however often the token was seen
        ([2.0, 1.5, -1.0], 1.5, [], 0),
        ([2.0, 1.5, -1.0], 1.5, [0, 1], 0),
        ([-1.0, -1.5, -4.0], 2.0, [0], 1),
        ([-1.0, -1.5, -4.0], 0.5, [1], 1),  # a penalty below 1 favours tokens seen
        ([0.0, -1.0], 9.0, [0], 0),  # the penalty does not change a logit of zero
    ],
)
def test_the_repetition_penalty_disfavours_tokens_seen(
    logits: list[float], penalty: float, seen: list[int], token: int
) -> None:
    decoding = Decoding(1, repetition_penalty=penalty)
    assert choose(row(logits), decoding, 0, seen=np.array(seen, np.int64))[0] == token


@pytest.mark.parametrize("sampling", [None, Sampling(), Sampling(top_k=3), Sampling(top_p=0.99)])
def test_what_ends_a_generation_is_not_chosen_before_min_tokens(sampling: Sampling | None) -> None:
    logits = row([9.0, 1.0, 8.0, 0.5])
    decoding = Decoding(9, sampling, min_tokens=2, stop_ids=frozenset({2}))
    chosen = [{choose(logits, decoding, at, num_produced=n, eos_id=0)[0] for at in range(50)} for n in range(4)]
    assert chosen[0] <= {1, 3}
    assert chosen[1] <= {1, 3}
    assert 0 in chosen[2]
    assert 0 in chosen[3]


def test_a_plain_decoding_is_one_whose_choice_is_the_argmax() -> None:
    plain = Decoding(5)
    assert plain.is_plain
    assert replace(plain, log_probabilities=True, stop_ids=frozenset({1})).is_plain
    for special in ({"sampling": Sampling()}, {"repetition_penalty": 1.1}, {"min_tokens": 1}):
        assert not replace(plain, **special).is_plain


def test_a_generation_ends_at_the_end_token_a_stop_token_or_its_limit() -> None:
    decoding = Decoding(3, stop_ids=frozenset({4, 5}))
    assert decoding.finish_reason(0, 1, eos_id=0) is FinishReason.EOS
    assert decoding.finish_reason(0, 1, eos_id=None) is None
    assert decoding.finish_reason(5, 3, eos_id=0) is FinishReason.STOP
    assert decoding.finish_reason(1, 2, eos_id=0) is None
    assert decoding.finish_reason(1, 3, eos_id=0) is FinishReason.MAX_TOKENS


def test_no_rows_make_no_choice() -> None:
    tokens, log_probabilities = choose_batch(np.empty((0, 5), np.float32), [])
    assert tokens.shape == log_probabilities.shape == (0,)


def test_a_row_of_nan_gives_its_first_nan_and_one_of_nothing_possible_its_first_token() -> None:
    assert choose(row([1.0, math.nan, math.nan]), Decoding(1), 0)[0] == 1
    assert choose(row([-math.inf] * 3), Decoding(1, Sampling()), 0)[0] == 0
