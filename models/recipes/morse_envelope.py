"""The baseline without training: the loudness of one tone against a threshold, timed in dots, and a table of codes.

It reads a whole recording before it outputs anything: it chooses one tone, one threshold and one dot length for all of
it. The transducer cannot look ahead like this.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.recipes import morse_data as data

_TONES_HZ = np.arange(400.0, 1001.0, 10.0)
_HOP, _WINDOW = 40, 160
"""In samples: loudness is measured over 20 ms, every 5 ms."""
_SHORTEST = 4
"""In hops. A shorter mark or gap counts as noise: it is half a dot at 30 words a minute."""
_CHARACTERS = {code: character for character, code in data.CODE.items()}

Floats = NDArray[np.float64]


def spell(samples: data.FloatArray) -> str:
    """Returns the text of a recording, [samples]. Codes of no character are left out."""
    level = _loudness(samples)
    runs = _runs(level > _split(level))
    marks = np.array([length for is_mark, length in runs if is_mark], np.float64)
    if not len(marks):
        return ""
    dot = _dot(marks)
    text, code = "", ""
    for is_mark, length in runs:
        if is_mark:
            code += "." if length < 2.0 * dot else "-"
        elif length >= 2.0 * dot:
            text += _CHARACTERS.get(code, "")
            text += " " if length >= 5.0 * dot else ""
            code = ""
    return (text + _CHARACTERS.get(code, "")).strip()


def _loudness(samples: data.FloatArray) -> Floats:
    """Returns the amplitude of the tone whose power varies most, in overlapping windows."""
    times = np.arange(len(samples)) / data.RATE
    powers = []
    for tone in _TONES_HZ:
        turned = np.cumsum(samples * np.exp(-2j * np.pi * tone * times))
        powers.append(np.abs(turned[_WINDOW::_HOP] - turned[:-_WINDOW:_HOP]) ** 2)
    loudest: Floats = max(powers, key=lambda power: float(power.std()))
    return np.sqrt(loudest)


def _split(values: Floats) -> float:
    """Returns the boundary between two clusters of numbers: the midpoint of their means."""
    at = float(values.min() + values.max()) / 2.0
    for _ in range(20):
        low, high = values[values <= at], values[values > at]
        if not len(low) or not len(high):
            break
        at = float(low.mean() + high.mean()) / 2.0
    return at


def _runs(is_mark: NDArray[np.bool_]) -> list[tuple[bool, int]]:
    """Returns marks and gaps with their lengths in hops. Short ones are added to the one before."""
    bounds = [0, *(np.flatnonzero(np.diff(is_mark)) + 1).tolist(), len(is_mark)]
    runs: list[tuple[bool, int]] = []
    for begin, end in pairwise(bounds):
        kind, length = bool(is_mark[begin]), end - begin
        if runs and (length < _SHORTEST or runs[-1][0] == kind):
            runs[-1] = runs[-1][0], runs[-1][1] + length
        else:
            runs.append((kind, length))
    return runs


def _dot(marks: Floats) -> float:
    """Returns the length of a dot, from the shorter and the longer marks; the mean of all if their means are
    similar."""
    at = _split(marks)
    short, long = marks[marks <= at], marks[marks > at]
    if len(long) and long.mean() > 1.8 * short.mean():
        return float(short.mean() + long.mean() / 3.0) / 2.0
    return float(marks.mean())
