"""The step graph of one variant, by its arrays: which inputs and outputs it has is known here alone.

A graph whose batch axis is fixed at 1 is run row by row.

Shapes: `B` rows, `T` time, `V` vocabulary.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from service.engine.arena import IntArray
from service.engine.graph import Array, Graph
from service.engine.outcome import Outcome
from service.engine.wants import Wants
from service.repository.manifest import Manifest, StepSpec


class StepGraph:
    """Advances rows. One thread at a time."""

    def __init__(self, manifest: Manifest, session: ort.InferenceSession, spec: StepSpec) -> None:
        self._graph = Graph(session)
        self._spec = spec
        self._states = [state.input for state in manifest.states]
        self._carried = [tensor.name for tensor in self._states] + [one.input.name for one in manifest.contexts]
        self._input, self._output = spec.input.name, spec.output.name
        self._lengths = None if spec.lengths is None else spec.lengths.name
        self._gives_values = spec.values is not None
        self._constants = {one.name: np.array(one.values, one.dtype).reshape(one.shape) for one in spec.constants}
        states = [state.output for state in manifest.states]
        self._num_states = len(states)
        heads = [] if spec.next_token is None else [spec.next_token.name]
        self._names = [*states, *heads]
        self._has_next_token = bool(heads)

    def run(
        self, tokens: Array, lengths: IntArray, states: list[Array], contexts: list[Array], wants: Wants
    ) -> tuple[Outcome, list[Array]]:
        """One run. tokens: [B, T], or features [B, T, F]; lengths: [B]; states, contexts: in the manifest's order.
        Returns what it told, and the next states. Raises what ONNX Runtime raises."""
        feeds: dict[str, Array] = dict(zip(self._carried, (*states, *contexts), strict=True))
        feeds[self._input] = tokens
        if self._lengths is not None:
            feeds[self._lengths] = lengths
        if self._constants:
            feeds |= self._constants
        names = self._names
        top_k = self._spec.top_k if wants.top_k else None
        wants_logits = wants.logits or not self._has_next_token or (wants.top_k > 0 and top_k is None)
        if top_k is not None:
            feeds[top_k.k.name] = np.array([wants.top_k], np.int64)
            names = [*names, top_k.log_probabilities.name, top_k.token_ids.name]
        if wants_logits:
            names = [*names, self._output]
        is_row_by_row = self._spec.max_rows == 1 and len(tokens) > 1
        outputs = iter(self._run_rows(names, feeds, len(tokens)) if is_row_by_row else self._graph.run(names, feeds))
        following = [next(outputs) for _ in range(self._num_states)]
        next_tokens = next(outputs) if self._has_next_token else None
        ranked = (next(outputs), next(outputs)) if top_k is not None else (None, None)
        logits = next(outputs).astype(np.float32, copy=False) if wants_logits else None
        return Outcome(logits, next_tokens, *ranked, gives_values=self._gives_values), following

    def _run_rows(self, names: list[str], feeds: dict[str, Array], num_rows: int) -> list[Array]:
        """As one run of all rows."""
        axes = {tensor.name: tensor.shape.index("batch") for tensor in self._states}
        shared = {*self._constants, *(() if self._spec.top_k is None else (self._spec.top_k.k.name,))}
        told = []
        for row in range(num_rows):
            of_row = {
                name: array if name in shared else array.take([row], axis=axes.get(name, 0))
                for name, array in feeds.items()
            }
            told.append(self._graph.run(names, of_row))
        along = [*axes.values(), *(0 for _ in names[self._num_states :])]
        return [np.concatenate(parts, axis=axis) for parts, axis in zip(zip(*told, strict=True), along, strict=True)]
