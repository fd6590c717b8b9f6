"""A character n-gram with interpolated Kneser-Ney smoothing: the baseline for language models.

Kneser and Ney, "Improved backing-off for m-gram language modeling" (1995), interpolated as in Chen and Goodman, "An
empirical study of smoothing techniques" (1999), section 3, with one discount for each order, n1 / (n1 + 2 n2).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

_DISCOUNT = 0.5
"""The discount when no n-gram was seen exactly once, so that the formula has no value."""


class KneserNey:
    """An n-gram of the given order, trained on sequences of ids. Ids are 0 to vocabulary_size - 1."""

    def __init__(self, sequences: Iterable[Sequence[int]], *, order: int, vocabulary_size: int) -> None:
        self.order = order
        self._vocabulary_size = vocabulary_size
        counts: Counter[tuple[int, ...]] = Counter()
        for sequence in sequences:
            for size in range(1, order):  # at the beginning of a sequence, contexts are shorter
                counts[tuple(sequence[:size])] += 1
            counts.update(zip(*(sequence[start:] for start in range(order)), strict=False))
        self._levels: list[_Level] = []
        for size in range(order, 0, -1):
            of_size = {gram: count for gram, count in counts.items() if len(gram) == size}
            self._levels.insert(0, _Level(of_size))
            shorter = Counter(gram[1:] for gram in of_size if size > 1)  # the number of contexts of each
            for gram, count in counts.items():
                if len(gram) == size - 1:
                    shorter[gram] += count  # n-grams at the beginning of sequences
            counts = shorter

    def probability(self, context: Sequence[int], token: int) -> float:
        """Returns the probability of a token after a context, whose last `order` - 1 tokens count. It is above 0."""
        result = 1.0 / self._vocabulary_size
        for size, level in enumerate(self._levels):
            if size > len(context):
                break
            result = level.interpolate(tuple(context[len(context) - size :]), token, result)
        return result

    def bits(self, sequence: Sequence[int]) -> float:
        """Returns the sum of -log2 of the probabilities of all tokens except the first, each given those before it."""
        longest = self.order - 1
        return -sum(
            math.log2(self.probability(sequence[max(0, at - longest) : at], sequence[at]))
            for at in range(1, len(sequence))
        )


class _Level:
    """The counts of n-grams of one length: total count and number of distinct n-grams by context."""

    def __init__(self, counts: dict[tuple[int, ...], int]) -> None:
        self._counts = counts
        self._totals: dict[tuple[int, ...], int] = defaultdict(int)
        self._kinds: dict[tuple[int, ...], int] = defaultdict(int)
        for gram, count in counts.items():
            self._totals[gram[:-1]] += count
            self._kinds[gram[:-1]] += 1
        once, twice = (sum(count == times for count in counts.values()) for times in (1, 2))
        self._discount = once / (once + 2 * twice) if once else _DISCOUNT

    def interpolate(self, context: tuple[int, ...], token: int, shorter: float) -> float:
        total = self._totals.get(context)
        if not total:
            return shorter
        count = self._counts.get((*context, token), 0)
        share = max(count - self._discount, 0.0) / total
        return share + self._discount * self._kinds[context] / total * shorter
