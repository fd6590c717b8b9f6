"""Runs the two files of a translator in a bare loop: one row, its source at its own length, one step at a time.

The bundle is compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.foreign.decoder_steps import DecoderFile
from export.foreign.encoder_file import EncoderFile
from export.foreign.links import Session
from export.foreign.reading import Reading
from export.foreign.step_graph import SOURCE_LENGTH
from export.interface import Interface
from export.proofs.runners import Array, IntArray


@dataclass(frozen=True, slots=True)
class Pair:
    """Both files as they were read. takes_logarithms: whether steps return probabilities, so that logits are their
    logarithms."""

    encoder: EncoderFile
    decoder: DecoderFile
    reading: Reading
    takes_logarithms: bool


class TranslatorReference:
    """Implements `export.proofs.runners.Runner` for both files."""

    float_dtype: type[np.floating] = np.float32

    def __init__(self, pair: Pair, interface: Interface) -> None:
        self._encoder, self._decoder, self._reading = pair.encoder, pair.decoder, pair.reading
        self._interface = interface
        decoder = pair.decoder
        self._session = Session(decoder.model, decoder.file.name)
        self._takes_logarithms = pair.takes_logarithms
        self._axes = [state.input.shape.index("batch") for state in interface.states]
        names = [state.input.name for state in interface.states]
        self._length_at = names.index(SOURCE_LENGTH) if SOURCE_LENGTH in names else None

    def encode(self, source: Array, lengths: IntArray) -> list[Array]:
        """See `Runner`."""
        rows = [
            self._encoder.run(row[:length]) | {SOURCE_LENGTH: np.array(length)}
            for row, length in zip(source, lengths.tolist(), strict=True)
        ]
        found: list[Array] = []
        for context, output in zip(self._interface.contexts, self._decoder.contexts.values(), strict=True):
            padded = np.zeros((*source.shape[:2], *context.input.shape[2:]), context.input.dtype)
            for place, row in enumerate(rows):
                padded[place, : len(row[output])] = row[output]
            found.append(padded)
        begun = {**self._decoder.initial, **self._decoder.kept, SOURCE_LENGTH: SOURCE_LENGTH}
        for state, axis in zip(self._interface.states, self._axes, strict=True):
            if state.initial is not None:
                output = begun[state.input.name]
                own = [row[output].astype(state.input.dtype).reshape(state.row_shape) for row in rows]
                found.append(np.stack(own, axis))
        return found

    def step(self, tokens: Array, lengths: IntArray, carried: Sequence[Array]) -> list[Array]:
        """See `Runner`."""
        states, contexts = carried[: len(self._axes)], carried[len(self._axes) :]
        part = self._reading.inputs[0]
        names = [state.output for state in self._reading.states]
        size = int(self._interface.step.output.shape[-1])
        answered = np.zeros((*tokens.shape[:2], size), np.float32)
        following = [np.array(array) for array in states]
        for row in range(len(tokens)):
            own = [array.take([row], axis=axis) for array, axis in zip(states, self._axes, strict=True)]
            feeds = self._reading.constant_arrays | self._of_source(row, own, contexts)
            own = own[: len(names)]
            for place in range(int(lengths[row])):
                feeds[part.tensor.name] = tokens[row, place].reshape(part.shape).astype(part.tensor.dtype)
                feeds |= {one.input.name: array for one, array in zip(self._reading.states, own, strict=True)}
                found = self._session.run(feeds)
                answered[row, place] = found[self._reading.outputs[0].tensor.name].reshape(-1).astype(np.float32)
                own = [found[name] for name in names]
            for array, new, axis in zip(following, own, self._axes, strict=False):
                array[(slice(None),) * axis + (row,)] = new.take(0, axis=axis)
        if self._takes_logarithms:
            with np.errstate(divide="ignore"):  # log(0) is minus infinity
                answered = np.log(answered)
        return [answered, *following]

    def read_out(self, carried: Sequence[Array]) -> Array | None:
        """Returns None: the files have no readout."""
        return None

    def _of_source(self, row: int, own: Sequence[Array], contexts: Sequence[Array]) -> dict[str, Array]:
        """Returns the decoder's inputs that depend on a row's source; they are the same in every step."""
        decoder = self._decoder
        length = 1 if self._length_at is None else int(own[self._length_at].item())
        feeds = {
            name: decoder.places[name].as_file(array[row, :length])
            for name, array in zip(decoder.contexts, contexts, strict=True)
        }
        feeds |= {mask.placed.tensor.name: mask.of_row(length) for mask in decoder.masks}
        if decoder.lengths is not None:
            feeds[decoder.lengths.name] = np.full(decoder.lengths.of_one_row, length, decoder.lengths.dtype)
        kept = [state.input.name for state in self._interface.states]
        feeds |= {name: own[kept.index(name)] for name in decoder.kept}
        return feeds
