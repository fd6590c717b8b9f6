"""Rows of a batch: the batch sizes, and runs of a part of a batch's rows, or of one step at a time.

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
"""The batch sizes that graphs run at: 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, .., 896, 1024. Memory then
does not grow with every batch size that occurs in traffic; only `Runner.copy_row` gathers other counts. A padding row
costs as much as any other; from 16 rows on, padding is less than a fifth of a batch."""


def bucket(count: int) -> int:
    """Returns the smallest batch size with at least `count` rows."""
    return ROW_BUCKETS[bisect_left(ROW_BUCKETS, count)]


def padded(rows: list[int]) -> IntArray:
    """Returns rows of the arena as an array, padded up to a bucket with row 0, which belongs to no session."""
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
    """Runs several steps of a graph that takes one step a run. Each step runs only the rows that are long enough.

    run: `StepGraph.run`; tokens: [B, T, ..]; lengths: [B]; axes: for each state, the axis that counts rows; count: rows
    without padding. Returns the outputs of all steps, which mean nothing past a row's length, and the next states.
    Raises what ONNX Runtime raises.
    """
    result, states = run(tokens[:, :1], lengths, states, contexts, fetch, count=count)
    first = _outputs_of(result)
    whole = [
        None if one is None else np.zeros((len(tokens), tokens.shape[1], *one.shape[2:]), one.dtype) for one in first
    ]
    _put(whole, slice(None), 0, first)
    for at in range(1, tokens.shape[1]):
        rows = np.flatnonzero(lengths[:count] > at).tolist()
        if len(rows) == len(tokens):
            result, states = run(tokens[:, at : at + 1], lengths, states, contexts, fetch, count=count)
            _put(whole, slice(None), at, _outputs_of(result))
            continue
        places = [*rows, *[rows[-1]] * (bucket(len(rows)) - len(rows))]
        own = [state.take(places, axis=axis) for state, axis in zip(states, axes, strict=True)]
        read = [context[places] for context in contexts]
        some, following = run(tokens[places, at : at + 1], lengths[places], own, read, fetch, count=len(rows))
        _put(whole, rows, at, [None if one is None else one[: len(rows)] for one in _outputs_of(some)])
        for state, one, axis in zip(states, following, axes, strict=True):
            before: tuple[Any, ...] = (slice(None),) * axis
            state[(*before, rows)] = one[(*before, slice(len(rows)))]
    return StepResult(*whole, gives_values=result.gives_values), states


def run_whole_steps(
    session: ort.InferenceSession, names: list[str], feeds: dict[str, Array], read: str, states_in: Sequence[str]
) -> list[Array]:
    """Does the same as `run_steps` for rows that all have all steps, without the overhead of `StepGraph.run` in each
    step.

    names: outputs to fetch: first the next states, then the step's outputs; feeds: inputs, with the tokens of all steps
    under `read`; changed by this function; states_in: input names of the states. Returns the next states, then the
    outputs of all steps. Raises what ONNX Runtime raises.
    """
    tokens = feeds[read]
    states: list[Array] = []
    given: list[list[Array]] = []
    for at in range(tokens.shape[1]):
        feeds[read] = tokens[:, at : at + 1]
        found = session.run(names, feeds)
        states = found[: len(states_in)]
        feeds.update(zip(states_in, states, strict=True))
        given.append(found[len(states_in) :])
    return [*states, *(np.concatenate(steps, axis=1) for steps in zip(*given, strict=True))]


def _outputs_of(result: StepResult) -> list[Array | None]:
    """Returns the outputs of a run in the order of `StepResult`'s arguments."""
    return [result.logits, result.next_tokens, result.top_log_probabilities, result.top_ids]


def _put(whole: Sequence[Array | None], rows: slice | list[int], at: int, outputs: Sequence[Array | None]) -> None:
    """Writes the outputs of step `at` for some rows into the arrays of all steps."""
    for array, one in zip(whole, outputs, strict=True):
        if array is not None and one is not None:
            array[rows, at] = one[:, 0]


class Axes(NamedTuple):
    """Which axes of a graph's tensors count rows. num_rows: B; inputs: by input name, the axes that are not the first;
    shared: inputs without such an axis; outputs: the axes of the fetched outputs, in order."""

    num_rows: int
    inputs: Mapping[str, int]
    shared: Collection[str]
    outputs: Sequence[int]


def run_alike(
    session: ort.InferenceSession,
    names: list[str],
    feeds: Mapping[str, Array],
    alike: Sequence[Sequence[int]],
    axes: Axes,
) -> list[Array]:
    """Runs each list of rows in `alike` alone. Returns the outputs as one run of all rows would; rows in no list get
    values without meaning. Raises what ONNX Runtime raises."""
    of_rows = {name: array for name, array in feeds.items() if name in axes.shared}
    apart: list[tuple[str, Array, tuple[Any, ...]]] = [
        (name, array, (slice(None),) * axes.inputs.get(name, 0))
        for name, array in feeds.items()
        if name not in axes.shared
    ]
    whole: list[Array] = []
    for rows in alike:
        # one row as a slice is a view, without a copy; ONNX Runtime copies it only if it is not contiguous
        places = [*rows, *[rows[-1]] * (bucket(len(rows)) - len(rows))]
        own: Any = slice(rows[0], rows[0] + 1) if len(rows) == 1 else places
        for name, array, ahead in apart:
            of_rows[name] = array[(*ahead, own)]
        outputs = session.run(names, of_rows)
        if not whole:
            whole = [
                np.zeros((*one.shape[:axis], axes.num_rows, *one.shape[axis + 1 :]), one.dtype)
                for one, axis in zip(outputs, axes.outputs, strict=True)
            ]
        for target, one, axis in zip(whole, outputs, axes.outputs, strict=True):
            before: tuple[Any, ...] = (slice(None),) * axis
            target[(*before, list(rows))] = one[(*before, slice(len(rows)))]
    return whole
