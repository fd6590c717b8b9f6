"""What `carousel inspect` found inside each step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GATE = re.compile(r"^(?P<layer>.+)\.(?P<name>[^.]+)$")


@dataclass(frozen=True, slots=True)
class Look:
    """The data of a drawing. steps: the input of each step. predictions: the model's prediction after each. source: the
    sequence that attention reads. traces: by name, each [steps, units] or [steps, source]."""

    model: str
    steps: Sequence[str]
    predictions: Sequence[str]
    source: Sequence[str]
    traces: Mapping[str, NDArray[np.float32]]

    @property
    def layers(self) -> dict[str, list[tuple[str, str]]]:
        """The traces of each layer, as pairs of kind and name. Attention is its own layer."""
        found: dict[str, list[tuple[str, str]]] = {}
        for name in self.traces:
            match = _GATE.match(name)
            found.setdefault(match["layer"] if match else name, []).append((match["name"] if match else name, name))
        return found
