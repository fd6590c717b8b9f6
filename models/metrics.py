"""Word and phoneme error rates, as usually reported for grapheme-to-phoneme models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def edit_distance(left: Sequence[object], right: Sequence[object]) -> int:
    """Returns the Levenshtein distance: insertions, deletions and substitutions cost 1 each."""
    previous = list(range(len(right) + 1))
    for row, left_item in enumerate(left, start=1):
        current = [row]
        for column, right_item in enumerate(right, start=1):
            substituted = previous[column - 1] + (left_item != right_item)
            current.append(min(substituted, previous[column] + 1, current[column - 1] + 1))
        previous = current
    return previous[-1]


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """Error rates as fractions (0.28 is 28 %). word_error_rate: words with distance > 0, divided by words.
    phoneme_error_rate: summed distance, divided by the summed length of the chosen references."""

    word_error_rate: float
    phoneme_error_rate: float
    num_words: int


def score(pairs: Iterable[tuple[Sequence[str], Sequence[Sequence[str]]]]) -> ErrorRates:
    """Scores (hypothesis, references) pairs, one for each word, against the reference nearest to the hypothesis.

    If several references are equally near, the longest one counts in the denominator. Raises ValueError when there are
    no pairs or a word has no reference.
    """
    words = wrong = distance_sum = length_sum = 0
    for hypothesis, references in pairs:
        if not references:
            raise ValueError("a word without a reference cannot be scored")
        distance, negative_length = min((edit_distance(hypothesis, r), -len(r)) for r in references)
        words += 1
        wrong += distance > 0
        distance_sum += distance
        length_sum -= negative_length
    if not words:
        raise ValueError("no words to score")
    return ErrorRates(wrong / words, distance_sum / length_sum, words)
