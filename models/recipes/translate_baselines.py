"""What `translate-en-de` is held to: two translators that learn nothing but tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import distance, process

from models.recipes.translate_data import Pair

_ROUNDS = 5
_TOKENS = re.compile(r"\w+|[^\w\s]")
_BEFORE = re.compile(r"\s+(?=[.,:;!?)\]])|(?<=[(\[])\s+")


def nearest(pairs: Sequence[Pair], texts: Sequence[str]) -> list[str]:
    """The translation of the text in `pairs` that has the least edit distance to each; of equals, of the first."""
    sources = [pair.english for pair in pairs]
    found = []
    for text in texts:
        best: Any = process.extractOne(text, sources, scorer=distance.Levenshtein.distance)
        found.append(pairs[best[2]].german)
    return found


class WordByWord:
    """Each word by the one that it is aligned to most often, in the order of the words. The alignment is that of IBM
    Model 1 (Brown et al. 1993), after five rounds of expectation maximisation."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        english = [_TOKENS.findall(pair.english) for pair in pairs]
        german = [_TOKENS.findall(pair.german) for pair in pairs]
        sources, targets = _numbered(english), _numbered(german)
        rows: list[NDArray[np.int64]] = []
        for number, (source, target) in enumerate(zip(english, german, strict=True)):
            of_source = [sources[word] for word in source]
            of_target = [targets[word] for word in target]
            each = np.array(np.meshgrid(of_source, of_target, indexing="ij")).reshape(2, -1)
            place = np.tile(np.arange(len(target)), len(source))
            rows.append(np.vstack([each, np.full(each.shape[1], number), place]))
        source, target, number, place = np.concatenate(rows, axis=1)
        couples, couple = np.unique(source * len(targets) + target, return_inverse=True)
        _, word = np.unique(number * (place.max() + 1) + place, return_inverse=True)
        left = couples // len(targets)
        table: NDArray[np.float64] = np.ones(len(couples))
        counts = table
        for _ in range(_ROUNDS):
            likely = table[couple]
            counts = np.bincount(couple, likely / np.bincount(word, likely)[word], len(couples)).astype(np.float64)
            table = counts / np.bincount(left, counts)[left]
        best = {}
        names = list(targets)
        for index in np.argsort(counts, kind="stable"):
            best[int(left[index])] = names[int(couples[index] % len(targets))]
        self._best = {name: best[number] for name, number in sources.items()}

    def translate(self, text: str) -> str:
        """A word that was never seen stays as it is."""
        words = [self._best.get(word, word) for word in _TOKENS.findall(text)]
        return _BEFORE.sub("", " ".join(words))


def _numbered(texts: Sequence[Sequence[str]]) -> dict[str, int]:
    return {word: number for number, word in enumerate(sorted({word for text in texts for word in text}))}
