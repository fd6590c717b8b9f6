"""Reads a translator's encoder by running it: finds its inputs and outputs.

1. Names of axes are not reliable. An output's axis that grows with the source is the source axis; one that grows with
   the number of rows is the batch axis.
2. A bundle is compared with runs of one source alone, at its own length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from export.errors import ExportError
from export.foreign.axes import Hints, Tensor, axis_named, batch_axis, batch_name, declared, listed
from export.foreign.causes import is_quantized
from export.foreign.encoder_inputs import (
    MIN_OPSET,
    are_alone,
    are_lengths,
    constants_of,
    feature_size_of,
    first_states,
    is_mask,
    placed_mask,
)
from export.foreign.links import Links, Placed, Session, advice
from export.foreign.loading import check_opset, load
from export.foreign.masks import Form, Mask, find_form
from export.foreign.wiring import Wiring
from export.proofs.runners import Array
from export.proofs.tolerances import QUANTIZED_ROWS, ROWS
from export.surgery import opset_of

_SHORT, _LONG = 5, 7
_MOST_TOKENS = 1 << 22


class EncoderFile:
    """The encoder's file, read and run.

    vocabulary_size: of the source; None: it is found by running. source: the input that is the source. lengths, masks:
    inputs for the source's length and masks, if there are any. outputs: by name. notes: what was found. The constructor
    raises ExportError.
    """

    def __init__(self, file: Path, hints: Hints, links: Links, vocabulary_size: int | None) -> None:
        self.file = file
        self.model = load(file)
        check_opset(file.name, opset_of(self.model), MIN_OPSET)
        self.inputs, self.tensors = declared(self.model, hints)
        self.constants = constants_of(self.inputs, hints)
        self.notes: list[str] = []
        zeros = first_states(Wiring(self.model, self.inputs, self.tensors), self.constants)
        self.constants |= zeros
        self.notes += [f"input {name} of {file.name} is zeros: it is the first state of the encoder" for name in zeros]
        self.masks: list[Mask] = []
        left = [one for name, one in self.inputs.items() if name not in self.constants]
        self.lengths = next((one for one in left if are_lengths(one, left, links)), None)
        left = [one for one in left if one is not self.lengths]
        named = [one for one in left if one.name in hints.inputs]
        sources = named or [one for one in left if not is_mask(one, left, links)]
        if len(sources) != 1:
            raise ExportError(
                f"which input of {file.name} is the source? {listed(self.inputs)}: give each one's role with --input"
                " NAME, --mask NAME, --lengths NAME and --constant NAME=VALUE"
            )
        self._session = Session(self.model, file.name)
        tensor, masks = sources[0], [one for one in left if one is not sources[0]]
        self.feature_size = feature_size_of(tensor)
        self.source = self._placed(tensor, hints)
        self.has_fixed_row = self.source.rows is not None and tensor.shape[self.source.rows] == 1
        self._unmasked = {
            one.name: placed_mask(one, self.source, file, has_fixed_row=self.has_fixed_row) for one in masks
        }
        self._assumed: Form = "real"
        self.vocabulary_size = None if self.feature_size else self._vocabulary_size(vocabulary_size)
        self.outputs = self._outputs_with_masks(hints)
        for name, placed in self._unmasked.items():
            self.masks.append(find_form(placed, links.masks.get(name), partial(self._padded, name)))
            self.notes.append(f"mask {name} of {file.name}: {self.masks[-1].form}, made of the lengths")

    def run(self, row: Array) -> dict[str, Array]:
        """Returns each output's numbers for a source of one row, [S] or [S, F], with the source axis first.

        Raises what ONNX Runtime raises.
        """
        feeds = self._feeds(row, len(row)) | {mask.placed.tensor.name: mask.of_row(len(row)) for mask in self.masks}
        found = self._session.run(feeds)
        return {name: placed.of_row(found[name]) for name, placed in self.outputs.items()}

    def draw(self, length: int, seed: int) -> Array:
        """Returns a random source of one row: [length] ids or [length, F] features."""
        generator = np.random.default_rng(seed)
        if self.feature_size:
            return generator.standard_normal((length, self.feature_size)).astype(np.float32)
        return generator.integers(1, self.vocabulary_size or 2, length)

    def _feeds(self, row: Array, length: int) -> dict[str, Array]:
        """Returns the file's inputs for one row. row: longer than `length` if it is padded."""
        feeds = dict(self.constants)
        feeds[self.source.tensor.name] = self.source.as_file(row).astype(self.source.tensor.dtype)
        if self.lengths is not None:
            feeds[self.lengths.name] = np.full(self.lengths.of_one_row, length, self.lengths.dtype)
        for name, placed in self._unmasked.items():
            feeds[name] = Mask(placed, self._assumed).of_row(length, len(row))
        return feeds

    def _padded(self, name: str, mask: Mask, own: int, behind: int) -> dict[str, Array]:
        row = np.concatenate([self.draw(_SHORT, own), self.draw(_LONG, behind)])
        found = self._session.run(self._feeds(row, _SHORT) | {name: mask.of_row(_SHORT, len(row))})
        placed = {output: (one, one.of_row(found[output])) for output, one in self.outputs.items()}
        return {
            output: array[:_SHORT] if one.source is not None else array
            for output, (one, array) in placed.items()
            if array.dtype.kind == "f"
        }

    def _placed(self, tensor: Tensor, hints: Hints) -> Placed:
        """Returns the source's batch and source axes. Raises ExportError for a source of a fixed length."""
        rank = len(tensor.shape) - bool(self.feature_size)
        shape = (self.feature_size,) if self.feature_size else ()
        if rank == 1:
            place, source = None, 0
        elif rank == 2:
            is_free = any(isinstance(axis, str) for axis in tensor.shape[:2])
            place = self._rows(tensor, hints) if is_free else 0
            source = 1 - place
        else:
            raise ExportError(f"{self.file.name}: the source {tensor} must have a batch axis and one for its tokens")
        if isinstance(tensor.shape[source], int):
            raise ExportError(
                f"{self.file.name}: the source {tensor} has a fixed length of {tensor.shape[source]}, but sources have"
                " different lengths: export the encoder with a dynamic source axis (dynamic_axes or dynamic_shapes of"
                " torch.onnx.export)"
            )
        return Placed(tensor, place, source, shape)

    def _rows(self, tensor: Tensor, hints: Hints) -> int:
        rows, tokens = tensor.shape[:2]
        if isinstance(rows, int) and rows > 1 and not str(tokens).lower().startswith(("b", "n")):
            raise ExportError(
                f"{self.file.name}: the source {tensor} has a fixed number of {rows} rows: export the encoder with a"
                " dynamic batch axis, or with one row"
            )
        ones = [place for place in (0, 1) if tensor.shape[place] == 1]
        if tensor.name not in hints.batch_axes and len(ones) == 1:
            return ones[0]
        named = next((axis for axis in tensor.shape[:2] if str(axis).lower().startswith("batch")), None)
        name = named if named is not None else batch_name(tensor, {}, hints)
        return min(1, batch_axis(tensor, hints, partial(axis_named, tensor, name)))

    def _vocabulary_size(self, given: int | None) -> int:
        """Returns the number of tokens that the file accepts, or `given`. Raises ExportError if `given` is too many."""

        def reads(token: int) -> bool:
            try:
                self._session.run(self._feeds(np.full(_SHORT, token, np.int64), _SHORT))
            except Exception:  # ONNX Runtime raises its own error classes
                return False
            return True

        if given is not None and reads(given - 1):
            return given
        try:
            self._session.run(self._feeds(np.zeros(_SHORT, np.int64), _SHORT))
        except Exception as error:  # ONNX Runtime raises its own error classes
            raise ExportError(
                f"{self.file.name} cannot be run on a source of {_SHORT} tokens: "
                + advice(error, "with dynamic batch and token axes")
            ) from error
        most = 1
        while most < _MOST_TOKENS and reads(most):
            most *= 2
        if most >= _MOST_TOKENS:
            raise ExportError(
                f"the number of source tokens of {self.file.name} is unknown: give them with --source-vocabulary FILE"
            )
        least = most // 2
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if reads(middle) else (least, middle)
        if given is not None:
            raise ExportError(f"--source-vocabulary has {given} tokens, but {self.file.name} reads {most}")
        return most

    def _outputs_with_masks(self, hints: Hints) -> dict[str, Placed]:
        """Returns `_outputs`, with masks assumed `real` or else `padding`: the wrong one masks a whole source, which
        gives NaN."""
        try:
            return self._outputs(hints)
        except ExportError:
            if not self._unmasked:
                raise
            self._assumed = "padding"
            return self._outputs(hints)

    def _outputs(self, hints: Hints) -> dict[str, Placed]:
        try:
            found = self._found(self.source, hints)
        except ExportError as error:
            swapped = self._swapped()
            if swapped is None:
                raise
            try:
                found = self._found(swapped, hints)
            except ExportError:
                raise error from None
            self.source = swapped
            self._unmasked = {
                name: placed_mask(one.tensor, swapped, self.file, has_fixed_row=self.has_fixed_row)
                for name, one in self._unmasked.items()
            }
            self.notes.append(f"the batch axis of {swapped.tensor.name} is {swapped.rows}, as runs show")
        return found

    def _swapped(self) -> Placed | None:
        source = self.source
        if source.rows is None or self.has_fixed_row or source.source is None:
            return None
        return Placed(source.tensor, source.source, source.rows, source.shape)

    def _found(self, source: Placed, hints: Hints) -> dict[str, Placed]:
        """Returns the outputs with their batch and source axes, found by running. source: the source's axes to try.

        Raises ExportError when two rows in a run differ from each row alone, or an output's length is not its source's.
        """
        before, self.source = self.source, source
        try:
            return self._as_run(hints)
        except ExportError:
            self.source = before
            raise
        except Exception as error:  # ONNX Runtime raises its own error classes
            self.source = before
            raise ExportError(
                f"{self.file.name} cannot be run on sources of {_SHORT} and {_LONG} tokens: "
                + advice(error, "with dynamic batch and token axes")
            ) from error

    def _as_run(self, hints: Hints) -> dict[str, Placed]:
        rows = [self.draw(_SHORT, seed) for seed in (0, 1)]
        short, other = (self._session.run(self._feeds(row, _SHORT)) for row in rows)
        long = self._session.run(self._feeds(self.draw(_LONG, 0), _LONG))
        two = None if self.source.rows is None or self.has_fixed_row else self._two(rows)
        wiring = Wiring(self.model, self.inputs, self.tensors)
        close = QUANTIZED_ROWS if is_quantized(self.model) else ROWS
        found: dict[str, Placed] = {}
        for name, tensor in self.tensors.items():
            one = short[name]
            grown = [place for place, size in enumerate(one.shape) if long[name].shape[place] != size]
            if grown and (one.shape[grown[0]], long[name].shape[grown[0]]) != (_SHORT, _LONG):
                raise ExportError(
                    f"{self.file.name}: {tensor} has {long[name].shape[grown[0]]} places for a source of {_LONG}"
                    " tokens: an output must have the source's length, or not depend on it"
                )
            twice = [] if two is None else [at for at, size in enumerate(one.shape) if two[name].shape[at] != size]
            if two is not None and not are_alone(two[name], [one, other[name]], twice, close=close):
                raise ExportError(
                    f"{self.file.name}: {tensor} differs between two rows in one run and each row alone: give the batch"
                    f" axis of {self.source.tensor} with --batch-axis {self.source.tensor.name}=PLACE"
                )
            ahead = (*twice, *grown)
            rest = tuple(size for place, size in enumerate(one.shape) if place not in ahead)
            parts = sorted({slot.part for slot in wiring.ends(name) if wiring.is_last(name)})
            found[name] = Placed(
                tensor, twice[0] if twice else None, grown[0] if grown else None, rest, parts[0] if parts else ""
            )
        return found

    def _two(self, rows: Sequence[Array]) -> dict[str, Array]:
        feeds = [self._feeds(row, _SHORT) for row in rows]
        joined = dict(feeds[0])
        axis = self.source.rows or 0
        for name in [self.source.tensor.name, *self._unmasked, *([self.lengths.name] if self.lengths else [])]:
            place = axis if name == self.source.tensor.name else 0
            if name in self._unmasked:
                place = self._unmasked[name].rows or 0
            joined[name] = np.concatenate([one[name] for one in feeds], place)
        for name in self.constants:  # a constant with a batch axis has one value for each row
            free = [at for at, size in enumerate(self.inputs[name].shape) if isinstance(size, str)]
            if free:
                joined[name] = np.repeat(joined[name], 2, axis=free[0])
        return self._session.run(joined)
