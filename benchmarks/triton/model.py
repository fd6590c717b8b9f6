"""The model for Triton's Python backend: a bundle's step graph. This module keeps the state of every sequence.

Triton loads this file in a separate process, which can import nothing else of this project. All requests of a batch are
one run. The sequence's id is the index of its state, and a start request writes zeros there. This is less work than a
model needs that accepts ids of any kind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # Triton brings it

NUM_SEQUENCES = 1024
"""Ids are from 1 to NUM_SEQUENCES - 1."""
_START = 1
"""The flag of a request that starts its sequence."""


class TritonPythonModel:
    """Has the name and the methods that the backend expects."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the graph with the same options as Carousel."""
        folder = Path(json.loads(args["model_config"])["parameters"]["bundle"]["string_value"])
        manifest = json.loads((folder / "manifest.json").read_text())
        step, states = manifest["step"], manifest["states"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        path = str(folder / step["file"])
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input, self._lengths = step["tokens"]["name"], step["lengths"]["name"]
        self._output = step["next_token"]["name"]
        self._outputs = [self._output, *(state["output"] for state in states)]
        self._ones = np.ones(NUM_SEQUENCES, np.int64)
        self._states: dict[str, Any] = {}  # [L, NUM_SEQUENCES, H] each
        for state in states:
            layers, _, size = state["input"]["shape"]
            self._states[state["input"]["name"]] = np.zeros((layers, NUM_SEQUENCES, size), np.float32)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Steps the sequence of each request once. Returns one response for each request."""
        ids = [request.correlation_id() for request in requests]
        for place, request in zip(ids, requests, strict=True):
            if request.flags() & _START:
                for state in self._states.values():
                    state[:, place] = 0
        tokens = [triton.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests]
        feeds = {name: state[:, ids] for name, state in self._states.items()}
        feeds[self._input] = np.concatenate(tokens)
        feeds[self._lengths] = self._ones[: len(ids)]
        chosen, *following = self._session.run(self._outputs, feeds)
        for state, rows in zip(self._states.values(), following, strict=True):
            state[:, ids] = rows
        return [
            triton.InferenceResponse([triton.Tensor(self._output, chosen[row : row + 1])]) for row in range(len(ids))
        ]
