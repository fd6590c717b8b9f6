"""Rows of a batch: the sizes that batches are padded to, and runs of some rows of a batch alone, or step by step.

Shapes: `B` rows, padded up to a bucket; `T` time; `V` values.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from service.engine.arena import Array, IntArray
from service.engine.results import FetchSpec, StepResult

ROW_BUCKETS = (1, 2, 4, 8, 12, *(quarters << power for power in range(2, 8) for quarters in (4, 5, 6, 7)), 1024)
"""The batch sizes that graphs are run at: memory then does not grow with every size that traffic happens to make. A row
that fills a batch up costs as much as any other: from 16 on they are less than a fifth of a batch."""


def bucket(count: int) -> int:
    """The least batch size that has room for so many rows."""
    return ROW_BUCKETS[bisect_left(ROW_BUCKETS, count)]


def padded(rows: list[int]) -> IntArray:
    """Rows of the arena as an array, padded up to a bucket with the row that is nobody's."""
    array = np.zeros(bucket(len(rows)), dtype=np.int64)
    array[: len(rows)] = rows
    return array


def run_steps(
    run: Callable[..., tuple[StepResult, list[Array]]],
    tokens: Array,
    lengths: IntArray,
    states: list[Array],
    contexts: Sequence[Array],
    *,
    axes: Sequence[int],
    fetch: FetchSpec,
    count: int,
) -> tuple[StepResult, list[Array]]:
    """As one run of several steps, of a graph that takes one: step after step, each of the rows that have it.

    run: `StepGraph.run`; tokens: [B, T, ..]; lengths: [B]; axes: of the states, which count rows; count: rows that are
    no padding. Returns what is fetched, of all steps and meaningless past a row's length, and the next states. Raises
    what ONNX Runtime raises.
    """
    result, states = run(tokens[:, :1], lengths, states, contexts, fetch, count=count)
    first = _told(result)
    whole = [
        None if one is None else np.zeros((len(tokens), tokens.shape[1], *one.shape[2:]), one.dtype) for one in first
    ]
    _put(whole, slice(None), 0, first)
    for at in range(1, tokens.shape[1]):
        rows = np.flatnonzero(lengths[:count] > at).tolist()
        if len(rows) == len(tokens):
            result, states = run(tokens[:, at : at + 1], lengths, states, contexts, fetch, count=count)
            _put(whole, slice(None), at, _told(result))
            continue
        places = [*rows, *[rows[-1]] * (bucket(len(rows)) - len(rows))]
        own = [state.take(places, axis=axis) for state, axis in zip(states, axes, strict=True)]
        read = [context[places] for context in contexts]
        some, following = run(tokens[places, at : at + 1], lengths[places], own, read, fetch, count=len(rows))
        _put(whole, rows, at, [None if one is None else one[: len(rows)] for one in _told(some)])
        for state, one, axis in zip(states, following, axes, strict=True):
            before: tuple[Any, ...] = (slice(None),) * axis
            state[(*before, rows)] = one[(*before, slice(len(rows)))]
    return StepResult(*whole, gives_values=result.gives_values), states


def run_whole_steps(
    session: ort.InferenceSession, names: list[str], feeds: dict[str, Array], read: str, carried: Sequence[str]
) -> list[Array]:
    """As `run_steps`, of rows that all have all steps, without what a run of its own costs each step.

    names: of what is fetched, the next states and then what the steps give; feeds: with all steps under `read`; it is
    changed; carried: the inputs of the states. Returns what is fetched, of all steps. Raises what ONNX Runtime raises.
    """
    tokens = feeds[read]
    states: list[Array] = []
    given: list[list[Array]] = []
    for at in range(tokens.shape[1]):
        feeds[read] = tokens[:, at : at + 1]
        found = session.run(names, feeds)
        states = found[: len(carried)]
        feeds.update(zip(carried, states, strict=True))
        given.append(found[len(carried) :])
    return [*states, *(np.concatenate(steps, axis=1) for steps in zip(*given, strict=True))]


def _told(result: StepResult) -> list[Array | None]:
    """What a run gave, in the order in which `StepResult` takes it."""
    return [result.logits, result.next_tokens, result.top_log_probabilities, result.top_ids]


def _put(whole: Sequence[Array | None], rows: slice | list[int], at: int, told: Sequence[Array | None]) -> None:
    """Puts what one step gave some rows in its place."""
    for array, one in zip(whole, told, strict=True):
        if array is not None and one is not None:
            array[rows, at] = one[:, 0]


class Axes(NamedTuple):
    """Which axes of a graph's tensors count rows. num_rows: B; inputs: the axes that are not the first, by input;
    shared: the inputs that have none; outputs: the axes of what is fetched, in order."""

    num_rows: int
    inputs: Mapping[str, int]
    shared: Collection[str]
    outputs: Sequence[int]


def run_groups(
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
