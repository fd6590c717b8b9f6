"""The baseline of the language models is a probability distribution by the formula of Chen and Goodman."""

from __future__ import annotations

import math
import random

import pytest

from models.ngram import KneserNey

SIZE = 5


@pytest.fixture(scope="module")
def sequences() -> list[list[int]]:
    generator = random.Random(0)
    return [[0, *(generator.choice([1, 2, 2, 3]) for _ in range(40))] for _ in range(6)]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_of_what_may_come_next_add_up_to_one(sequences: list[list[int]], order: int) -> None:
    """This holds after any context, seen or not, and every token has a probability above 0."""
    model = KneserNey(sequences, order=order, vocabulary_size=SIZE)
    for context in ([], [0], [1, 2], [2, 2, 2, 2, 2], [4, 4]):
        found = [model.probability(context, token) for token in range(SIZE)]
        assert math.fsum(found) == pytest.approx(1.0)
        assert min(found) > 0


def test_a_bigram_by_hand() -> None:
    """The sequence is a b a b a c. Unigrams count the contexts before a token, and each order has one discount."""
    a, b, c = range(3)
    model = KneserNey([[a, b, a, b, a, c]], order=2, vocabulary_size=3)
    # bigrams: ab 2, ba 2, ac 1, so n1 = 1, n2 = 2 and the discount is 1 / 5; after a: 3 in all, of 2 kinds
    # unigrams by the contexts before them: a 1 (and 1 for the beginning), b 1, c 1, so n1 = 2, n2 = 1 and the discount
    # is 1 / 2
    unigram_of_c = (1 - 0.5) / 4 + 0.5 * 3 / 4 * (1 / 3)
    expected = (1 - 0.2) / 3 + 0.2 * 2 / 3 * unigram_of_c
    assert model.probability([a], c) == pytest.approx(expected)


def test_bits_are_those_of_its_probabilities(sequences: list[list[int]]) -> None:
    model = KneserNey(sequences, order=3, vocabulary_size=SIZE)
    sequence = [0, 1, 2, 4, 3]
    expected = -sum(math.log2(model.probability(sequence[max(0, at - 2) : at], sequence[at])) for at in range(1, 5))
    assert model.bits(sequence) == pytest.approx(expected)


def test_a_longer_memory_helps_where_there_is_something_to_remember() -> None:
    pattern = [0, *([1, 1, 2, 3] * 30)]
    bits = [KneserNey([pattern], order=order, vocabulary_size=SIZE).bits(pattern) for order in (1, 2, 3)]
    assert bits == sorted(bits, reverse=True)
    assert bits[2] < bits[0] / 3
