"""Rows of a batch: the sizes that batches are padded to, and runs of some rows of a batch alone.

Shape: `B` rows, padded up to a bucket.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from service.engine.arena import Array, IntArray

ROW_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""The batch sizes that graphs are run at: memory then does not grow with every size that traffic happens to make."""


def bucket(count: int) -> int:
    """The least batch size that has room for so many rows."""
    return ROW_BUCKETS[bisect_left(ROW_BUCKETS, count)]


def padded(rows: list[int]) -> IntArray:
    """Rows of the arena as an array, padded up to a bucket with the row that is nobody's."""
    array = np.zeros(bucket(len(rows)), dtype=np.int64)
    array[: len(rows)] = rows
    return array


class Axes(NamedTuple):
    """Which axes of a graph's tensors count rows. num_rows: B; inputs: the axes that are not the first, by input;
    shared: the inputs that have none; outputs: the axes of what is fetched, in order."""

    num_rows: int
    inputs: Mapping[str, int]
    shared: Collection[str]
    outputs: Sequence[int]


def run_apart(
    session: ort.InferenceSession,
    names: list[str],
    feeds: Mapping[str, Array],
    groups: Sequence[Sequence[int]],
    axes: Axes,
) -> list[Array]:
    """As one run of all rows, with each group of them in a run of its own. What rows of no group get means nothing.
    Raises what ONNX Runtime raises."""
    of_group = {name: array for name, array in feeds.items() if name in axes.shared}
    apart: list[tuple[str, Array, tuple[Any, ...]]] = [
        (name, array, (slice(None),) * axes.inputs.get(name, 0))
        for name, array in feeds.items()
        if name not in axes.shared
    ]
    whole: list[Array] = []
    for rows in groups:
        # a slice is a view: ONNX Runtime copies what is not contiguous
        places = [*rows, *[rows[-1]] * (bucket(len(rows)) - len(rows))]
        own: Any = slice(rows[0], rows[0] + 1) if len(rows) == 1 else places
        for name, array, ahead in apart:
            of_group[name] = array[(*ahead, own)]
        outputs = session.run(names, of_group)
        if not whole:
            whole = [
                np.zeros((*one.shape[:axis], axes.num_rows, *one.shape[axis + 1 :]), one.dtype)
                for one, axis in zip(outputs, axes.outputs, strict=True)
            ]
        for target, one, axis in zip(whole, outputs, axes.outputs, strict=True):
            before: tuple[Any, ...] = (slice(None),) * axis
            target[(*before, list(rows))] = one[(*before, slice(len(rows)))]
    return whole
