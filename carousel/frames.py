"""Steps from samples that come in any number: what does not fill a step is kept until the rest has come."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Any

from carousel._tensors import Array

_SAMPLE_SIZE = 2
"""Bytes of a sample of 16 bits."""
_SCALE = 2.0**-15
"""Of samples of 16 bits to numbers from -1 up to 1."""


class Frames:
    """Cuts samples into the steps that a model reads: `session.feed(features=frames.add(samples))`.

        frames = Frames(session.feature_size)
        while samples := microphone.read():
            if steps := frames.add(samples):
                session.feed(features=steps)
        if steps := frames.flush():
            session.feed(features=steps)

    A step is an `array.array` of 32-bit floats. Not safe for use by several threads: have one for each session.
    """

    def __init__(self, size: int) -> None:
        """size: the numbers of a step, 1 or more: `Session.feature_size`. Raises ValueError for another."""
        if size < 1:
            raise ValueError(f"size = {size} must be 1 or more: it is how many numbers a step reads")
        self.size = size
        self._kept: array[float] = array("f")
        self._half = b""

    def __len__(self) -> int:
        """How many samples are kept: fewer than a step has."""
        return len(self._kept)

    @property
    def missing(self) -> int:
        """How many samples the step lacks that has begun; 0 when none has."""
        return -len(self._kept) % self.size

    def add(self, samples: Iterable[float] | Array) -> list[array[float]]:
        """Takes samples, and returns the steps that are whole, in order; often none.

        samples: a list or another iterable of numbers, an `array.array`, or an array of one axis such as NumPy's. They
        are taken as they are: integers are not scaled. For PCM there is `add_pcm`. Raises TypeError for what is no
        number, and for bytes, and ValueError for more axes, having taken nothing.
        """
        self._kept += _numbers(samples)
        return self._whole()

    def add_pcm(self, data: bytes | bytearray | memoryview | Any) -> list[array[float]]:
        """Takes PCM, and returns the steps that are whole.

        data: bytes, or another buffer, of signed integers of 16 bits, little-endian, of one channel. They are scaled to
        numbers from -1 up to 1. Half a sample at the end is kept.
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
        """The samples that are kept. They stay."""
        return self._kept[:]

    def flush(self, fill: float = 0.0) -> list[array[float]]:
        """The step that has begun, filled up, or none. Nothing is kept then: what is added next begins a step.

        fill: the number in place of each sample that is missing.
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
    return array("f", samples)
