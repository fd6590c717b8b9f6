"""The step graph of one variant, by its arrays: which inputs and outputs it has is known here alone.

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
        inputs = [*(state.input for state in manifest.states), *(context.input for context in manifest.contexts)]
        self._inputs = [tensor.name for tensor in (spec.tokens, spec.lengths, *inputs)]
        states = [state.output for state in manifest.states]
        self._num_states = len(states)
        heads = [] if spec.next_token is None else [spec.next_token.name]
        self._names = [*states, *heads]
        self._has_next_token = bool(heads)

    def run(
        self, tokens: IntArray, lengths: IntArray, states: list[Array], contexts: list[Array], wants: Wants
    ) -> tuple[Outcome, list[Array]]:
        """One run. tokens: [B, T]; lengths: [B]; states, contexts: in the manifest's order. Returns what it told, and
        the next states. Raises what ONNX Runtime raises."""
        feeds = dict(zip(self._inputs, (tokens, lengths, *states, *contexts), strict=True))
        names = self._names
        top_k = self._spec.top_k if wants.top_k else None
        wants_logits = wants.logits or not self._has_next_token or (wants.top_k > 0 and top_k is None)
        if top_k is not None:
            feeds[top_k.k.name] = np.array([wants.top_k], np.int64)
            names = [*names, top_k.log_probabilities.name, top_k.token_ids.name]
        if wants_logits:
            names = [*names, self._spec.logits.name]
        outputs = iter(self._graph.run(names, feeds))
        following = [next(outputs) for _ in range(self._num_states)]
        next_tokens = next(outputs) if self._has_next_token else None
        ranked = (next(outputs), next(outputs)) if top_k is not None else (None, None)
        logits = next(outputs).astype(np.float32, copy=False) if wants_logits else None
        return Outcome(logits, next_tokens, *ranked), following
