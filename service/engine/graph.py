"""One ONNX Runtime graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[np.generic]


class Graph:
    """Runs a loaded graph. One thread at a time; ONNX Runtime releases the GIL while it runs."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Runs the graph once. inputs: by name, of the shapes that the manifest gives. Returns new arrays, in the order
        of `outputs`. Raises what ONNX Runtime raises."""
        results: list[Array] = self._session.run(outputs, inputs)
        return results
