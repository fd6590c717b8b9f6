"""A character n-gram with interpolated Kneser-Ney smoothing: what a language model has to be better than.

Kneser and Ney, "Improved backing-off for m-gram language modeling" (1995), interpolated as Chen and Goodman, "An
empirical study of smoothing techniques" (1999), section 3, with one discount an order, n1 / (n1 + 2 n2).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

_DISCOUNT = 0.5
"""Where nothing was seen once, so that the formula gives none."""


class KneserNey:
    """An n-gram of the given order, trained on sequences of ids. vocabulary_size: ids are 0 to that less one."""

    def __init__(self, sequences: Iterable[Sequence[int]], *, order: int, vocabulary_size: int) -> None:
        self.order = order
        self._vocabulary_size = vocabulary_size
        counts: Counter[tuple[int, ...]] = Counter()
        for sequence in sequences:
            for size in range(1, order):  # where a sequence begins there is no more of a context
                counts[tuple(sequence[:size])] += 1
            counts.update(zip(*(sequence[start:] for start in range(order)), strict=False))
        self._levels: list[_Level] = []
        for size in range(order, 0, -1):
            of_size = {gram: count for gram, count in counts.items() if len(gram) == size}
            self._levels.insert(0, _Level(of_size))
            shorter = Counter(gram[1:] for gram in of_size if size > 1)  # in how many contexts each is seen
            for gram, count in counts.items():
                if len(gram) == size - 1:
                    shorter[gram] += count  # of a sequence's beginning
            counts = shorter

    def probability(self, context: Sequence[int], token: int) -> float:
        """Of a token after the ones before it, of which the last `order` - 1 count. Above 0."""
        result = 1.0 / self._vocabulary_size
        for size, level in enumerate(self._levels):
            if size > len(context):
                break
            result = level.interpolate(tuple(context[len(context) - size :]), token, result)
        return result

    def bits(self, sequence: Sequence[int]) -> float:
        """The sum of -log2 of the probabilities of a sequence's tokens but the first, each after those before it."""
        longest = self.order - 1
        return -sum(
            math.log2(self.probability(sequence[max(0, at - longest) : at], sequence[at]))
            for at in range(1, len(sequence))
        )


class _Level:
    """Counts of one length: totals and kinds by context."""

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
