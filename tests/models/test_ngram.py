"""The baseline of language models is a distribution, and its formula is Chen and Goodman's."""

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
    """After any context, seen or not, and no token has none."""
    model = KneserNey(sequences, order=order, vocabulary_size=SIZE)
    for context in ([], [0], [1, 2], [2, 2, 2, 2, 2], [4, 4]):
        found = [model.probability(context, token) for token in range(SIZE)]
        assert math.fsum(found) == pytest.approx(1.0)
        assert min(found) > 0


def test_a_bigram_by_hand() -> None:
    """Of a b a b a c: three kinds of bigrams after which a, b, c are new, one discount an order."""
    a, b, c = range(3)
    model = KneserNey([[a, b, a, b, a, c]], order=2, vocabulary_size=3)
    # bigrams ab 2, ba 2, ac 1: n1 = 1, n2 = 2, discount 1 / 5; after a: 3 in all, 2 kinds
    # unigrams are counted by their contexts, a 1 (and once at the beginning), b 1, c 1: n1 = 2, n2 = 1, discount 1 / 2
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
