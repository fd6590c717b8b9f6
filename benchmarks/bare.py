"""Runs a bundle's step graph without a server: the loop that serving is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.repository.bundle import load_bundle
from service.repository.manifest import BASE_VARIANT, Manifest, StepSpec
from service.repository.runtime import RuntimeOptions

Array = NDArray[np.generic]


class BareStep:
    """Runs the step graph; the caller passes the state from run to run. For models without an encoder."""

    def __init__(
        self, manifest: Manifest, spec: StepSpec, session: ort.InferenceSession, names: tuple[str, ...]
    ) -> None:
        self.names = names
        self.session = session
        self._manifest = manifest
        choice = spec.next_token.name if spec.next_token else spec.output.name
        states = [state.output for state in manifest.states]
        self._with_logits = [spec.output.name, *states]
        self.choice_outputs = [choice, *states]
        """Names of the outputs of `choose`: the next tokens, [B, T] int64 (logits where the graph does not choose), and
        the next state."""
        self.token_input = spec.input.name
        self.lengths_input = None if spec.lengths is None else spec.lengths.name
        self.state_inputs = [state.input.name for state in manifest.states]
        self.has_choice = spec.next_token is not None

    def zeros(self, num_rows: int) -> list[Array]:
        """Returns a state of zeros for `num_rows` rows."""
        shapes = [[num_rows if axis == "batch" else int(axis) for axis in s.input.shape] for s in self._manifest.states]
        return [np.zeros(shape, state.input.dtype) for shape, state in zip(shapes, self._manifest.states, strict=True)]

    def step(self, tokens: Array, lengths: Array, state: list[Array]) -> tuple[Array, list[Array]]:
        """Runs the graph once. tokens: [B, T]; lengths: [B]. Returns logits [B, T, V] and the next state."""
        logits, *following = self.session.run(self._with_logits, self._feeds(tokens, lengths, state))
        return logits, following

    def choose(self, tokens: Array, lengths: Array, state: list[Array]) -> tuple[Array, list[Array]]:
        """Runs the graph once. tokens: [B, T]; lengths: [B]. Returns the most likely next tokens, [B, T] int64, and the
        next state."""
        chosen, *following = self.session.run(self.choice_outputs, self._feeds(tokens, lengths, state))
        return (chosen if self.has_choice else chosen.argmax(axis=-1)), following

    def _feeds(self, tokens: Array, lengths: Array, state: list[Array]) -> dict[str, Array]:
        feeds = {self.token_input: tokens, **dict(zip(self.state_inputs, state, strict=True))}
        return feeds if self.lengths_input is None else {**feeds, self.lengths_input: lengths}


def load_step(folder: Path, variant: str = BASE_VARIANT, runtime: RuntimeOptions | None = None) -> BareStep:
    """Loads the step graph of a bundle, with the same checks and options as the server."""
    bundle = load_bundle(folder, runtime)
    graphs = bundle.variants[variant]
    names = () if bundle.target_vocabulary is None else bundle.target_vocabulary.names
    return BareStep(bundle.manifest, graphs.step_spec.of_one_step, graphs.step, names)
