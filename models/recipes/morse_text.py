"""The texts of Morse messages: dictionary words, common words, call signs, numbers, and operators' abbreviations."""

from __future__ import annotations

from functools import cache

import numpy as np

from models.recipes import cmudict_data

Split = cmudict_data.Split

_COMMON_TEXT = (
    "the of and to in is you that it he was for on are as with his they i at be this have from or one had by but not "
    "what all were we when your can said there use an each which she do how their if will up other about out many then "
    "them these so some her would make like him into time has look two more write go see number no way could people "
    "my than first water been call who oil its now find long down day did get come made may part"
)
"""Common English words, the commonest first."""
_ABBREVIATED_TEXT = (
    "cq cq cq de de k kn r tu es rst 599 5nn 73 88 qth qrz? qsl qrm qsb qso? name hr ur om fb wx ant rig pwr agn pse "
    "= = ="
)
"""Operators' abbreviations. A repeated one is drawn more often."""
_COMMON, _ABBREVIATED = _COMMON_TEXT.split(), _ABBREVIATED_TEXT.split()
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@cache
def _dictionary(split: Split) -> tuple[str, ...]:
    return tuple(
        word for word in cmudict_data.load(split).words if word.isascii() and word.isalpha() and 2 <= len(word) <= 9
    )


def draw_word(generator: np.random.Generator, split: Split) -> str:
    """Draws a word. Dictionary words belong to the split; common words and abbreviations occur in all splits."""
    kind = generator.random()
    if kind < 0.35:
        words = _dictionary(split)
        word = words[generator.integers(len(words))]
    elif kind < 0.6:
        word = _COMMON[int(len(_COMMON) ** generator.random()) - 1]  # Zipf's law: frequency of the n-th word is 1/n
    elif kind < 0.75:
        word = _call_sign(generator)
    elif kind < 0.88:
        return _ABBREVIATED[generator.integers(len(_ABBREVIATED))]
    else:
        word = "".join(str(digit) for digit in generator.integers(10, size=generator.integers(1, 5)))
    return word + (generator.choice([".", ",", "?"]) if generator.random() < 0.12 else "")


def _call_sign(generator: np.random.Generator) -> str:
    def letters(count: int) -> str:
        return "".join(_LETTERS[index] for index in generator.integers(len(_LETTERS), size=count))

    sign = letters(int(generator.integers(1, 3))) + str(generator.integers(10)) + letters(int(generator.integers(1, 4)))
    return sign + ("/" + generator.choice(["p", "m", "qrp"]) if generator.random() < 0.15 else "")
