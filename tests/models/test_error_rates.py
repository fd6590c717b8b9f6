"""Word and phoneme error rates are what the field means by them."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from models.metrics import edit_distance, score

WORDS = st.text("abc", max_size=6)


def by_hand(left: str, right: str) -> int:
    """The definition, tried out in full: the cheapest of deleting, inserting, and substituting or keeping."""
    if not left or not right:
        return len(left) + len(right)
    kept = by_hand(left[1:], right[1:]) + (left[0] != right[0])
    return min(by_hand(left[1:], right) + 1, by_hand(left, right[1:]) + 1, kept)


@given(WORDS, WORDS)
def test_edit_distance_is_the_least_number_of_edits(left: str, right: str) -> None:
    """The table agrees with trying out every way."""
    assert edit_distance(left, right) == by_hand(left, right)


def test_the_nearest_pronunciation_counts() -> None:
    """A word with several references is scored against the one it comes nearest to."""
    rates = score([("AB", ["XYZ", "ABC", "AB"]), ("QQ", ["XYZ", "QQQQ"])])
    assert rates.word_error_rate == 1 / 2
    assert rates.phoneme_error_rate == (0 + 2) / (2 + 4)
    assert rates.num_words == 2


def test_of_equally_near_pronunciations_the_longest_is_the_denominator() -> None:
    """Two references at distance one: the length of the longer one is counted."""
    assert score([("AB", ["A", "ABC"])]).phoneme_error_rate == 1 / 3


@given(st.lists(st.tuples(WORDS, st.lists(st.text("abc", min_size=1, max_size=6), min_size=1)), min_size=1))
def test_rates_are_zero_exactly_for_right_answers(pairs: list[tuple[str, list[str]]]) -> None:
    """No word is wrong when every hypothesis is among its references, and some word is otherwise."""
    rates = score(pairs)
    assert (rates.word_error_rate == 0) == all(hypothesis in references for hypothesis, references in pairs)
    assert (rates.phoneme_error_rate == 0) == (rates.word_error_rate == 0)


def test_nothing_to_score_is_an_error() -> None:
    """Neither an empty list of words nor a word without a reference has a rate."""
    with pytest.raises(ValueError, match="no words"):
        score([])
    with pytest.raises(ValueError, match="without a reference"):
        score([("A", [])])
