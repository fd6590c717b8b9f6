"""The trace graph: what one step of each row does inside. Its inputs and outputs are known here alone."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from service.engine.arena import Array, IntArray
from service.engine.decoding import FloatArray
from service.repository.manifest import Manifest


class TraceGraph:
    """Looks inside steps. One thread at a time. Raises ValueError for a manifest without a trace."""

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
        self._over_source = {one.name for one in manifest.trace.outputs if one.tensor.shape[-1] == "source"}
        self._outputs = {output.name: output.tensor.name for output in manifest.trace.outputs}

    def run(  # the step graph's, and how much of the source is each row's own
        self, tokens: Array, lengths: IntArray, states: list[Array], contexts: list[Array], sources: list[int]
    ) -> dict[str, list[FloatArray]]:
        """What the steps of `tokens`, [B, 1] or [B, 1, F], would do from the states: by name and row, [1, units], or
        [1, source] as long as the row's own of `sources`, which has fewer rows when the last are padding. Other
        arguments are as the step graph's. Raises what ONNX Runtime raises."""
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
