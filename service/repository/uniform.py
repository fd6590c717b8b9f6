"""Rows that have the same value of what one run has once: a graph's tensor without a batch axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def groups_of(arrays: Sequence[tuple[NDArray[Any], int]], count: int) -> list[list[int]]:
    """The first `count` rows, parted by their values, bit for bit; none when all have the same. arrays: each with the
    axis that counts its rows."""
    columns = [np.ascontiguousarray(np.moveaxis(array, axis, 0)[:count]) for array, axis in arrays]
    keys = np.concatenate([column.reshape(count, -1).view(np.uint8) for column in columns], axis=1)
    if (keys == keys[0]).all():
        return []
    groups: dict[bytes, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key.tobytes(), []).append(row)
    return list(groups.values())
