"""A plain loop over a bundle's graphs: one session, one token at a time. The server must give the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.repository.manifest import FILE_NAME, SOURCE_MULTIPLE, Manifest

FloatArray = NDArray[np.float32]
Item = int | Sequence[float] | FloatArray


class ReferenceSession:
    """A session of the bundle in `folder`.

    source: token ids or vectors, for a model with an encoder. variant: None for the base.
    """

    def __init__(self, folder: Path, source: Sequence[Item] | None = None, variant: str | None = None) -> None:
        self.manifest = _manifest((folder / FILE_NAME).read_bytes())
        step = self.manifest.step if variant is None else self.manifest.variants[variant].step
        self._step = self._graph(folder, step.file)
        self._fixed: dict[str, NDArray[np.generic]] = {}
        self._state = {
            state.input.name: np.zeros(
                [1 if axis == "batch" else int(axis) for axis in state.input.shape], state.input.dtype
            )
            for state in self.manifest.states
        }
        for state in self.manifest.states:
            if state.initial_file is not None:
                axis = state.input.shape.index("batch")
                self._state[state.input.name] = np.expand_dims(np.load(folder / state.initial_file), axis)
        self.logits: FloatArray | None = None
        if source is not None:
            self._encode(folder, source)
        if self.manifest.start is not None and source is not None:
            self.step(source[-1])
        if self.manifest.special_tokens.bos_id is not None:
            self.step(self.manifest.special_tokens.bos_id)

    def step(self, token: Item) -> FloatArray:
        """Consumes one token or one vector. Returns the logits or values after it, [V]."""
        spec = self.manifest.step.of_one_step
        feeds = {
            spec.input.name: np.array([[token]], spec.input.dtype),
            **{one.name: np.array(one.values, one.dtype).reshape(one.shape) for one in spec.constants},
            **self._state,
            **self._fixed,
        }
        if spec.lengths is not None:
            feeds[spec.lengths.name] = np.array([1], np.int64)
        names = [spec.output.name, *(state.output for state in self.manifest.states)]
        logits, *states = self._step.run(names, feeds)
        self._state = {s.input.name: value for s, value in zip(self.manifest.states, states, strict=True)}
        self.logits = logits[0, 0]
        return self.logits

    def generate(self, max_tokens: int) -> list[int]:
        """Returns the tokens of greedy decoding from the current position, without the end token."""
        tokens: list[int] = []
        while len(tokens) < max_tokens:
            assert self.logits is not None
            token = int(self.logits.argmax())
            if token == self.manifest.special_tokens.eos_id:
                break
            tokens.append(token)
            self.step(token)
        return tokens

    def forecast(self, horizon: int) -> list[FloatArray]:
        """Returns `horizon` predicted values, [V] each. Each value is the input of the next step."""
        values: list[FloatArray] = []
        for _ in range(horizon):
            assert self.logits is not None
            values.append(self.logits)
            self.step(self.logits)
        return values

    def _encode(self, folder: Path, source: Sequence[Item]) -> None:
        spec = self.manifest.encoder
        assert spec is not None
        width = -(-len(source) // SOURCE_MULTIPLE) * SOURCE_MULTIPLE
        features = (spec.feature_size,) if spec.feature_size else ()
        padded = np.zeros((1, width, *features), spec.source.dtype)
        padded[0, : len(source)] = source
        names = [c.output for c in self.manifest.contexts] + [s.initial for s in self.manifest.states if s.initial]
        feeds = {spec.source.name: padded, spec.lengths.name: np.array([len(source)], np.int64)}
        outputs = dict(zip(names, self._graph(folder, spec.file).run(names, feeds), strict=True))
        self._fixed = {c.input.name: outputs[c.output] for c in self.manifest.contexts}
        self._state |= {s.input.name: outputs[s.initial] for s in self.manifest.states if s.initial}

    def _graph(self, folder: Path, file: str) -> ort.InferenceSession:
        return _graph(folder / file, self.manifest.digests[file])


@lru_cache(maxsize=32)
def _manifest(data: bytes) -> Manifest:
    return Manifest.model_validate_json(data)


@lru_cache(maxsize=32)
def _graph(path: Path, digest: str) -> ort.InferenceSession:
    """Loads a graph. digest: of the file, so that another file of this path is loaded anew."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options)
