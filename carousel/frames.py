"""Cuts samples that arrive in any number into steps. Keeps the samples that do not fill a step."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Any

from carousel._arguments import integer, iterable
from carousel._tensors import Array

_SAMPLE_SIZE = 2
"""Bytes of a 16-bit sample."""
_SCALE = 2.0**-15
"""Scales 16-bit samples to numbers from -1 up to, but not including, 1."""


class Frames:
    """Cuts samples into the steps that a model reads: `session.feed(features=frames.add(samples))`.

        frames = Frames(session.feature_size)
        while samples := microphone.read():
            if steps := frames.add(samples):
                session.feed(features=steps)
        if steps := frames.flush():
            session.feed(features=steps)

    A step is an `array.array` of 32-bit floats. Not thread-safe: use one for each session.
    """

    def __init__(self, size: int) -> None:
        """size: how many numbers a step reads, 1 or more: `Session.feature_size`. Raises ValueError below 1,
        TypeError if it is not an integer."""
        if integer(size, "size") < 1:
            raise ValueError(f"size = {size} must be 1 or more: it is how many numbers a step reads")
        self.size = size
        self._kept: array[float] = array("f")
        self._half = b""

    def __len__(self) -> int:
        """How many samples are kept; always fewer than a step needs."""
        return len(self._kept)

    @property
    def missing(self) -> int:
        """How many samples are missing to fill the current step; 0 if no samples are kept."""
        return -len(self._kept) % self.size

    def add(self, samples: Iterable[float] | Array) -> list[array[float]]:
        """Adds samples. Returns the complete steps, in order; often none.

        samples: an iterable of numbers, an `array.array`, or an array with one axis, such as NumPy's. Integers are not
        scaled: for PCM, use `add_pcm`. Raises TypeError for bytes and for values that are not numbers, ValueError for
        more axes. After an error, nothing was added.
        """
        self._kept += _numbers(samples)
        return self._whole()

    def add_pcm(self, data: bytes | bytearray | memoryview | Any) -> list[array[float]]:
        """Adds PCM. Returns the complete steps.

        data: bytes, or another buffer, of 16-bit signed integers, little-endian, one channel. They are scaled to
        numbers from -1 up to, but not including, 1. Half a sample at the end is kept.
        """
        given = self._half + bytes(memoryview(data).cast("B"))
        whole = len(given) - len(given) % _SAMPLE_SIZE
        self._half = given[whole:]
        integers = array("h", given[:whole])
        if sys.byteorder == "big":
            integers.byteswap()
        self._kept += array("f", [integer * _SCALE for integer in integers])
        return self._whole()

    def rest(self) -> array[float]:
        """Returns a copy of the kept samples."""
        return self._kept[:]

    def flush(self, fill: float = 0.0) -> list[array[float]]:
        """Fills up the current step and returns it, or nothing if no samples are kept. The next `add` starts a new
        step.

        fill: the number for each missing sample.
        """
        self._half = b""
        self._kept += array("f", [fill]) * self.missing
        return self._whole()

    def _whole(self) -> list[array[float]]:
        kept, size = self._kept, self.size
        end = len(kept) - len(kept) % size
        steps = [kept[begin : begin + size] for begin in range(0, end, size)]
        if steps:
            self._kept = kept[end:]
        return steps


def _numbers(samples: Any) -> array[float]:
    if isinstance(samples, str | bytes | bytearray):
        raise TypeError(f"samples must be numbers, not {type(samples).__name__}: add_pcm takes bytes of 16-bit PCM")
    if hasattr(samples, "shape"):
        view = memoryview(samples)
        if view.ndim != 1:
            raise ValueError(f"samples must have 1 axis, not {view.ndim}: choose a channel, or average them")
        samples = view.tolist()
    return array("f", iterable(samples, "samples", "numbers"))
