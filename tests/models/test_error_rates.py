"""Word and phoneme error rates follow the definitions that the field uses."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from models.metrics import edit_distance, score

WORDS = st.text("abc", max_size=6)


def by_hand(left: str, right: str) -> int:
    """Returns the edit distance by its definition: tries every deletion, insertion, and substitution or match."""
    if not left or not right:
        return len(left) + len(right)
    kept = by_hand(left[1:], right[1:]) + (left[0] != right[0])
    return min(by_hand(left[1:], right) + 1, by_hand(left, right[1:]) + 1, kept)


@given(WORDS, WORDS)
def test_edit_distance_is_the_least_number_of_edits(left: str, right: str) -> None:
    """The table gives the same distance as trying all edits."""
    assert edit_distance(left, right) == by_hand(left, right)


def test_the_nearest_pronunciation_counts() -> None:
    """A word with several references is compared with the nearest one."""
    rates = score([("AB", ["XYZ", "ABC", "AB"]), ("QQ", ["XYZ", "QQQQ"])])
    assert rates.word_error_rate == 1 / 2
    assert rates.phoneme_error_rate == (0 + 2) / (2 + 4)
    assert rates.num_words == 2


def test_of_equally_near_pronunciations_the_longest_is_the_denominator() -> None:
    """Of two references at distance one, the length of the longer one is counted."""
    assert score([("AB", ["A", "ABC"])]).phoneme_error_rate == 1 / 3


@given(st.lists(st.tuples(WORDS, st.lists(st.text("abc", min_size=1, max_size=6), min_size=1)), min_size=1))
def test_rates_are_zero_exactly_for_right_answers(pairs: list[tuple[str, list[str]]]) -> None:
    """The word error rate is 0 if and only if every hypothesis is among its references."""
    rates = score(pairs)
    assert (rates.word_error_rate == 0) == all(hypothesis in references for hypothesis, references in pairs)
    assert (rates.phoneme_error_rate == 0) == (rates.word_error_rate == 0)


def test_nothing_to_score_is_an_error() -> None:
    """An empty list of words has no rate, and neither has a word without a reference."""
    with pytest.raises(ValueError, match="no words"):
        score([])
    with pytest.raises(ValueError, match="without a reference"):
        score([("A", [])])
