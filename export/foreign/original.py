"""Runs an ONNX file itself, one row and one step at a time; its bundle is compared with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import onnx

from export.errors import ExportError, first_line
from export.foreign.reading import Reading
from export.proofs.runners import Array, IntArray, loaded
from export.proofs.tolerances import SUM_OF_PROBABILITIES

_MANY = 8


def check_kept(name: str, output: str, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """Raises ExportError for a state whose shape a step changes. name, output: its input and its output."""
    if before != after:
        raise ExportError(f"--state {name}={output}: it is {list(before)} before a step but {list(after)} after it")


class Original:
    """Implements `export.proofs.runners.Runner` for a file.

    decided: constants that `reading` does not contain. The constructor raises ExportError when ONNX Runtime cannot load
    the file.
    """

    float_dtype: type[np.floating] = np.float32

    def __init__(self, model: onnx.ModelProto, reading: Reading, decided: Mapping[str, Array]) -> None:
        self._session = loaded(model, "the file")
        self.takes_logarithms = False
        """Whether `step` returns the logarithms of the file's outputs."""
        self._reading = reading
        self._num_states = len(reading.states)
        self._output_shapes: list[tuple[int, ...]] = []
        self._constants = {**reading.constant_arrays, **decided}

    def output_shapes(self) -> list[tuple[int, ...]]:
        """Returns the shape of each step output, without axes of size 1.

        Raises ExportError when the file cannot be run as it was read, or when two equal runs differ.
        """
        reading = self._reading
        try:
            first, second = (self.run(self._zero_input(), self.zeros()) for _ in range(2))
        except Exception as error:  # ONNX Runtime raises its own error classes
            shown = ", ".join(f"{part.tensor} as {list(part.shape)}" for part in reading.inputs)
            raise ExportError(
                f"the file cannot be run on {shown}: {first_line(error)}. Correct this with --axis NAME=SIZE,"
                " --batch-axis NAME=PLACE, --state or --constant"
            ) from error
        for state, after in zip(reading.states, first[1], strict=False):
            check_kept(state.input.name, state.output, state.shape, after.shape)
        both = zip([*first[0], *first[1]], [*second[0], *second[1]], strict=True)
        if any(one.tobytes() != other.tobytes() for one, other in both):
            raise ExportError(
                "the file returns different values for equal inputs: it draws random numbers. Export the module in"
                " evaluation mode"
            )
        self._output_shapes = [tuple(axis for axis in output.shape if axis != 1) for output in first[0]]
        return self._output_shapes

    def gives_probabilities(self, vocabulary_size: int | None) -> bool:
        """Whether the output, in steps on random inputs, is never below 0 and sums to 1.

        vocabulary_size: of the tokens that the file reads; None: it reads numbers.
        """
        carried = self.zeros()
        for vector in self.draw(_MANY, vocabulary_size):
            outputs, carried = self.run(vector, carried)
            output = outputs[0]
            if output.size < 2 or output.min() < 0.0 or abs(float(output.sum()) - 1.0) > SUM_OF_PROBABILITIES:
                return False
        return True

    def useless_states(self, vocabulary_size: int | None, *, may_be_all: bool) -> list[str]:
        """Returns the states that change neither an output nor a next state, as a few random steps show.

        Raises ExportError when that is every state, unless `may_be_all`.
        """
        *before, last = self.draw(_MANY, vocabulary_size)
        carried = self.zeros()
        for vector in before:
            _, carried = self.run(vector, carried)
        useless = []
        for place, state in enumerate(self._reading.states):
            without = [*carried[:place], np.zeros_like(carried[place]), *carried[place + 1 :]]
            if all(self._bits(one, without) == self._bits(one, carried) for one in (*before, last)):
                useless.append(state.input.name)
        if len(useless) == self._num_states and not may_be_all:
            raise ExportError(
                f"no output depends on {' or '.join(useless)}: the file keeps its state elsewhere. Pair it with --state"
                " INPUT=OUTPUT, or use --force-state if this is intended"
            )
        return useless

    def _bits(self, vector: Array, carried: Sequence[Array]) -> list[bytes]:
        outputs, after = self.run(vector, carried)
        return [one.tobytes() for one in (*outputs, *after)]

    def encode(self, source: Array, lengths: IntArray) -> list[Array]:
        """Raises ValueError: the file has no encoder."""
        raise ValueError("this model has no encoder")

    def read_out(self, carried: Sequence[Array]) -> Array | None:
        """Returns None: the file has no readout."""
        return None

    def step(self, tokens: Array, lengths: IntArray, carried: Sequence[Array]) -> list[Array]:
        """Runs each row alone, step by step. tokens: [B, T] or [B, T, F]. See `export.proofs.runners.Runner`."""
        constants = self._reading.session_constants
        num_others = len(carried) - self._num_states - len(constants)
        axes = [state.batch_axis for state in self._reading.states]
        axes += [0] * num_others + [constant.batch_axis or 0 for constant in constants]
        size = sum(prod(shape) for shape in self._output_shapes)
        answered = np.zeros((*tokens.shape[:2], size), np.float32)
        following: list[list[Array]] = [[] for _ in axes]
        for row in range(len(tokens)):
            own = [array.take([row], axis=axis) for array, axis in zip(carried, axes, strict=True)]
            for place in range(int(lengths[row])):
                outputs, own = self.run(tokens[row, place].reshape(-1), own)
                answered[row, place] = np.concatenate([one.reshape(-1).astype(np.float32) for one in outputs])
            for column, array in zip(following, own, strict=True):
                column.append(array)
        joined = [np.concatenate(column, axis=axis) for column, axis in zip(following, axes, strict=True)]
        if self.takes_logarithms:
            with np.errstate(divide="ignore"):  # log(0) is minus infinity
                answered = np.log(answered)
        return [answered, *joined]

    def zeros(self) -> list[Array]:
        """Returns what one row carries before its first step: states, windows, started or not, session constants."""
        reading = self._reading
        states = [
            np.zeros(state.shape, state.input.dtype) if state.initial is None else state.initial
            for state in reading.states
        ]
        windows = [np.zeros((1, part.window), np.float32) for part in reading.inputs if part.window]
        started = [] if reading.start is None else [np.zeros((1, 1), np.float32)]
        return [*states, *windows, *started, *(constant.example for constant in reading.session_constants)]

    def draw(self, count: int, vocabulary_size: int | None) -> list[Array]:
        """Returns `count` random vectors, or tokens, of one row."""
        generator = np.random.default_rng(0)
        size = sum(part.size for part in self._reading.inputs)
        if vocabulary_size is not None:
            return list(generator.integers(0, vocabulary_size, (count, size)))
        drawn = generator.standard_normal((count, size)).astype(np.float32)
        begin = 0
        for part in self._reading.inputs:
            if part.tensor.dtype == "bool" or part.is_end:
                drawn[:, begin : begin + part.size] = drawn[:, begin : begin + part.size] > 0
            begin += part.size
        return list(drawn)

    def run(self, vector: Array, carried: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Runs one step of one row. Raises what ONNX Runtime raises.

        vector: the step's inputs, one after the other. carried: see `zeros`. Returns the file's outputs, and what the
        row carries afterwards.
        """
        return self._run([vector], carried)

    def run_at_once(self, vectors: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Runs several steps of one row from the beginning in one run: see `run`. Each input must have a time axis and
        no window."""
        return self._run(vectors, self.zeros())

    def _run(self, vectors: Sequence[Array], carried: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        reading = self._reading
        states, others = list(carried[: self._num_states]), list(carried[self._num_states :])
        constants = others[len(others) - len(reading.session_constants) :]
        del others[len(others) - len(reading.session_constants) :]
        feeds = dict(self._constants)
        feeds |= {state.input.name: array for state, array in zip(reading.states, states, strict=True)}
        ahead = others[: sum(part.window > 0 for part in reading.inputs)]
        after: list[Array] = []
        begin = 0
        for part in reading.inputs:
            pieces = [vector[begin : begin + part.size] for vector in vectors]
            begin += part.size
            if part.window:
                pieces = [np.concatenate([ahead[len(after)][0], pieces[0].astype(np.float32)])]
                after.append(pieces[0][np.newaxis, -part.window :])
            items = [piece.reshape(part.shape).astype(part.tensor.dtype) for piece in pieces]
            feeds[part.tensor.name] = items[0] if len(items) == 1 else np.concatenate(items, axis=part.time_axes[0])
        if reading.start is not None:
            is_first = np.full(reading.start.of_one_row, others[-1].item() == 0.0)
            feeds[reading.start.name] = is_first.astype(reading.start.dtype)
            after.append(np.ones((1, 1), np.float32))
        for constant, value in zip(reading.session_constants, constants, strict=True):
            feeds[constant.tensor.name] = value[0, ...] if constant.batch_axis is None else value
        names = [one.tensor.name for one in reading.outputs]
        found: list[Array] = self._session.run([*names, *(state.output for state in reading.states)], feeds)
        return found[: len(names)], [*found[len(names) :], *after, *constants]

    def _zero_input(self) -> Array:
        return np.zeros(sum(part.size for part in self._reading.inputs), np.float32)
