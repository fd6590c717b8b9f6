"""Groups rows by the values of states that a run reads only once: tensors without a batch axis in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def groups_of(arrays: Sequence[tuple[NDArray[Any], int]], count: int) -> list[list[int]]:
    """Groups the first `count` rows by their values, compared bit by bit. Returns no groups when all rows are equal.

    arrays: each with the axis that counts its rows.
    """
    columns = [np.ascontiguousarray(np.moveaxis(array, axis, 0)[:count]) for array, axis in arrays]
    keys = np.concatenate([column.reshape(count, -1).view(np.uint8) for column in columns], axis=1)
    if (keys == keys[0]).all():
        return []
    groups: dict[bytes, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key.tobytes(), []).append(row)
    return list(groups.values())
