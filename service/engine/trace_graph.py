"""The trace graph: returns the inner values of a step for each row. Only this file knows its inputs and outputs."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from service.engine.arena import Array, IntArray
from service.engine.decoding import FloatArray
from service.repository.manifest import Manifest
from service.repository.uniform import groups_of

_NONE: FloatArray = np.empty(0, np.float32)


class TraceGraph:
    """Traces steps, for as many rows at once as a run of the step graph takes. For one thread at a time. Raises
    ValueError for a manifest without a trace."""

    def __init__(self, manifest: Manifest, session: ort.InferenceSession) -> None:
        if manifest.trace is None:
            raise ValueError(f"{manifest.model} has no trace")
        step = manifest.step
        self._session = session
        self._read = {node.name for node in session.get_inputs()}
        self._inputs = [step.input.name, "" if step.lengths is None else step.lengths.name]
        self._inputs += [state.input.name for state in manifest.states]
        self._inputs += [context.input.name for context in manifest.contexts]
        self._constants = {one.name: np.array(one.values, one.dtype).reshape(one.shape) for one in step.constants}
        self._axes = [state.input.shape.index("batch") for state in manifest.states]
        self._uniform = [place for place, state in enumerate(manifest.states) if state.is_uniform]
        self._is_of_one_row = step.max_rows == 1
        self._over_source = {one.name for one in manifest.trace.outputs if one.tensor.shape[-1] == "source"}
        self._outputs = {output.name: output.tensor.name for output in manifest.trace.outputs}

    def run(  # the arguments of the step graph, and the rows' source lengths
        self, tokens: Array, lengths: IntArray, states: list[Array], contexts: list[Array], sources: list[int]
    ) -> dict[str, list[FloatArray]]:
        """Returns what the steps of `tokens`, [B, 1] or [B, 1, F], compute from the states, by name and row.

        sources: the source length of each row, without padding. The other arguments are as for `StepGraph.run`. A value
        is [1, units], or [1, source] with the row's source length. Raises what ONNX Runtime raises.
        """
        count = len(sources)
        groups: list[list[int]] = []
        if len(tokens) > 1 and self._is_of_one_row:
            groups = [[row] for row in range(count)]
        elif len(tokens) > 1 and self._uniform:
            groups = groups_of([(states[place], self._axes[place]) for place in self._uniform], count)
        if not groups:
            return self._run(tokens, lengths, states, contexts, sources)
        by_name: dict[str, list[FloatArray]] = {name: [_NONE] * count for name in self._outputs}
        for rows in groups:
            own = [array.take(rows, axis=axis) for array, axis in zip(states, self._axes, strict=True)]
            others = [context[rows] for context in contexts]
            found = self._run(tokens[rows], lengths[rows], own, others, [sources[row] for row in rows])
            for name, values in found.items():
                for row, value in zip(rows, values, strict=True):
                    by_name[name][row] = value
        return by_name

    def _run(
        self, tokens: Array, lengths: IntArray, states: list[Array], contexts: list[Array], sources: list[int]
    ) -> dict[str, list[FloatArray]]:
        """Runs the graph once: see `run`."""
        given = {**dict(zip(self._inputs, (tokens, lengths, *states, *contexts), strict=True)), **self._constants}
        feeds = {name: array for name, array in given.items() if name in self._read}
        found = self._session.run(list(self._outputs.values()), feeds)
        by_name: dict[str, list[FloatArray]] = {}
        for name, array in zip(self._outputs, found, strict=True):
            rows = [row.astype(np.float32, copy=False) for row in array[: len(sources)]]
            if name in self._over_source:
                rows = [row[:, :length] for row, length in zip(rows, sources, strict=True)]
            by_name[name] = rows
        return by_name
