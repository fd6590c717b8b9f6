"""A translator's decoder as it was exported, and its steps on the encoder's outputs for random sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from export.errors import ExportError, first_line
from export.foreign.axes import Hints, Tensor
from export.foreign.encoder_file import EncoderFile
from export.foreign.links import Placed, Session
from export.foreign.masks import Mask
from export.proofs.runners import Array

SHORT, LONG = 5, 7
"""Lengths of random sources."""


@dataclass(slots=True)
class DecoderFile:
    """The decoder's file, and what was found in it.

    contexts: the encoder's outputs by input. kept: the same for inputs that do not grow with the source. initial: the
    same for states. places: axes of the inputs over the source. masks, lengths: inputs that the exporter computes.
    token: the input that a step reads. model: the file's. bound: the model with one source's values as constants; its
    inputs are a step's and the states. hints: for reading `bound`.
    """

    file: Path
    model: onnx.ModelProto
    bound: onnx.ModelProto
    hints: Hints
    inputs: Mapping[str, Tensor]
    contexts: dict[str, str] = field(default_factory=dict)
    places: dict[str, Placed] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    initial: dict[str, str] = field(default_factory=dict)
    masks: list[Mask] = field(default_factory=list)
    lengths: Tensor | None = None
    token: Tensor | None = None
    notes: list[str] = field(default_factory=list)


class Steps:
    """Runs steps of a decoder on the encoder's outputs for random sources."""

    def __init__(
        self,
        found: DecoderFile,
        encoder: EncoderFile,
        session: Session,
        constants: Mapping[str, Array],
    ) -> None:
        self._found, self._encoder, self._session = found, encoder, session
        self._constants = constants

    def given(self, length: int = SHORT, seed: int = 0) -> dict[str, Array]:
        """Returns the inputs that depend on a random source, as the file declares them, with one row."""
        found = self._found
        row = self._encoder.run(self._encoder.draw(length, seed))
        feeds = {name: found.places[name].as_file(row[output]) for name, output in found.contexts.items()}
        feeds |= {mask.placed.tensor.name: mask.of_row(length) for mask in found.masks}
        for name, output in found.kept.items():
            feeds[name] = row[output].reshape(found.inputs[name].of_one_row).astype(found.inputs[name].dtype)
        if found.lengths is not None:
            feeds[found.lengths.name] = np.full(found.lengths.of_one_row, length, found.lengths.dtype)
        return feeds

    def rows(self) -> Iterator[Placed]:
        """Yields the inputs of `given` with their batch axes."""
        found = self._found
        for name in self.given():
            placed = found.places.get(name) or next(
                (one.placed for one in found.masks if one.placed.tensor.name == name), None
            )
            if placed is None:
                tensor = found.inputs[name]
                free = [at for at, size in enumerate(tensor.shape) if isinstance(size, str)]
                placed = Placed(tensor, free[0] if free else None, None, ())
            yield placed

    def run(self, length: int) -> dict[str, Array]:
        """Returns the outputs of a step on a random source. Raises ExportError when the file cannot run it."""
        try:
            return self._session.run(self._others(0) | self.given(length))
        except Exception as error:  # ONNX Runtime raises its own error classes
            raise ExportError(
                f"{self._found.file.name} cannot be run on what the encoder returns for {length} tokens:"
                f" {first_line(error)}. Export it with dynamic batch and source axes, or give its inputs' roles with"
                " --context, --mask, --lengths and --constant"
            ) from error

    def padded(self, name: str, mask: Mask, own: int, behind: int) -> dict[str, Array]:
        """Runs a padded source with one mask; see `masks.Try`. name: of the mask's input."""
        found = self._found
        feeds = self._others(own) | self.given(SHORT, own)
        tail = np.random.default_rng(behind)
        for context, output in found.contexts.items():
            placed = found.places[context]
            row = self._encoder.run(self._encoder.draw(SHORT, own))[output]
            noise = tail.standard_normal((LONG, *row.shape[1:])).astype(row.dtype)
            feeds[context] = placed.as_file(np.concatenate([row, noise]))
        for other in found.masks:
            if other.placed.tensor.name != name:
                feeds[other.placed.tensor.name] = other.of_row(SHORT, SHORT + LONG)
        found_now = self._session.run(feeds | {name: mask.of_row(SHORT, SHORT + LONG)})
        return {output: array for output, array in found_now.items() if array.dtype.kind == "f" and array.size}

    def _others(self, seed: int) -> dict[str, Array]:
        """Returns the inputs that do not depend on the source: constants, a token, random states."""
        found = self._found
        random = np.random.default_rng(0)
        feeds = dict(self._constants)
        bound = {*found.contexts, *found.kept, *(one.placed.tensor.name for one in found.masks)}
        for name, tensor in found.inputs.items():
            if name in bound or name in feeds or tensor is found.lengths:
                continue
            if tensor.dtype.startswith("float"):
                feeds[name] = random.standard_normal(tensor.of_one_row).astype(tensor.dtype)
            else:
                feeds[name] = np.ones(tensor.of_one_row, tensor.dtype)
        return feeds
