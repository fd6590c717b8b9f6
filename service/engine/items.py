"""What steps consume: tokens by number, or vectors of features.

A vector is the bytes of its numbers, 32-bit floats, little-endian. So both are immutable values that are kept, compared
and stored bit by bit, and only here are they arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]

Item: TypeAlias = int | bytes
"""A token's number, or a vector."""

ITEM_SIZE = 4
"""Bytes of a number."""


class Items:
    """Arrays of items. feature_size: numbers in a vector, F; 0 when items are tokens."""

    def __init__(self, feature_size: int) -> None:
        self.feature_size = feature_size

    def blank(self, num_rows: int, width: int) -> Array:
        """[num_rows, width] tokens, or [num_rows, width, F] features: all zero."""
        if self.feature_size:
            return np.zeros((num_rows, width, self.feature_size), np.float32)
        return np.zeros((num_rows, width), np.int64)

    def array(self, items: Sequence[Item]) -> Array:
        """Items as an array: [N] or [N, F]."""
        if self.feature_size:
            joined = b"".join(items)  # type: ignore[arg-type]  # of a model that reads features
            return np.frombuffer(joined, "<f4").reshape(len(items), self.feature_size)
        return np.array(items, np.int64)

    @staticmethod
    def vector(values: Array) -> bytes:
        """The item of a vector [F] of 32-bit floats."""
        return values.astype("<f4", copy=False).tobytes()
