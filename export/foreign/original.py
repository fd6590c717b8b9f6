"""An ONNX file as it is, run one row and one step at a time: what its bundle is held to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime

from export.errors import ExportError, first_line
from export.foreign.reading import Reading
from export.proofs.runners import Array, IntArray

_MANY = 8
_NEAR_1 = 1e-2  # sums of 16-bit floats are as far from it


class Original:
    """See `export.proofs.runners.Runner`. Raises ExportError for a file that ONNX Runtime cannot load."""

    float_dtype: type[np.floating] = np.float32

    def __init__(self, model: onnx.ModelProto, reading: Reading) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # what it has to say comes as an exception
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises classes of its own
            raise ExportError(f"ONNX Runtime cannot load the file: {first_line(error)}") from error
        self.takes_logarithms = False
        """Whether what `step` returns are the logarithms of what the file gives."""
        self._reading = reading
        self._constants = {
            name: np.array(values, tensor.dtype).reshape([int(axis) for axis in tensor.shape])
            for name, (tensor, values) in reading.constants.items()
        }

    def num_outputs(self) -> int:
        """Numbers that a step gives. Raises ExportError when the file cannot be run as it was read, or what it gives is
        not the same twice."""
        states = self.zeros()
        item = np.zeros(self._reading.input_shape, self._reading.input.dtype)
        try:
            first, second = (self.run(item, states) for _ in range(2))
        except Exception as error:  # ONNX Runtime raises classes of its own
            raise ExportError(
                f"the file cannot be run on {self._reading.input} as {list(self._reading.input_shape)}:"
                f" {first_line(error)}. Say otherwise with --axis NAME=SIZE, --batch-axis NAME=PLACE, --state and"
                " --constant"
            ) from error
        for state, after in zip(self._reading.states, first[1:], strict=True):
            if after.shape != state.shape:
                raise ExportError(
                    f"--state {state.input.name}={state.output}: it is {list(state.shape)} before a step and"
                    f" {list(after.shape)} after it"
                )
        if any(one.tobytes() != other.tobytes() for one, other in zip(first, second, strict=True)):
            raise ExportError("the file gives something else each time it is run: it draws random numbers")
        return int(first[0].size)

    def gives_probabilities(self, vocabulary_size: int | None) -> bool:
        """Whether what it gives, in steps of random inputs, is never below 0, and sums to 1. vocabulary_size: of the
        tokens that it reads; None: it reads numbers."""
        generator, states = np.random.default_rng(0), self.zeros()
        for _ in range(_MANY):
            if vocabulary_size is not None:
                item: Array = generator.integers(0, vocabulary_size, self._reading.input_shape)
            else:
                item = generator.standard_normal(self._reading.input_shape)
            output, *states = self.run(item.astype(self._reading.input.dtype), states)
            if output.size < 2 or output.min() < 0.0 or abs(float(output.sum()) - 1.0) > _NEAR_1:
                return False
        return True

    def encode(self, source: Array, lengths: IntArray) -> list[Array]:
        """It has no encoder."""
        raise ValueError("this model has no encoder")

    def read_out(self, carried: Sequence[Array]) -> Array | None:
        """It has no readout."""
        return None

    def step(self, tokens: Array, lengths: IntArray, carried: Sequence[Array]) -> list[Array]:
        """tokens: [B, 1] or [B, 1, F]. See `export.proofs.runners.Runner`."""
        axes = [state.batch_axis for state in self._reading.states]
        outputs: list[Array] = []
        following: list[list[Array]] = [[] for _ in axes]
        for row in range(len(tokens)):
            item = tokens[row].reshape(self._reading.input_shape).astype(self._reading.input.dtype)
            states = [array.take([row], axis=axis) for array, axis in zip(carried, axes, strict=True)]
            output, *after = self.run(item, states)
            output = output.reshape(1, 1, -1).astype(np.float32)
            with np.errstate(divide="ignore"):  # of 0: minus infinity
                outputs.append(np.log(output) if self.takes_logarithms else output)
            for column, array in zip(following, after, strict=True):
                column.append(array)
        joined = [np.concatenate(column, axis=axis) for column, axis in zip(following, axes, strict=True)]
        return [np.concatenate(outputs), *joined]

    def zeros(self) -> list[Array]:
        """The states of one row before its first step."""
        return [np.zeros(state.shape, state.input.dtype) for state in self._reading.states]

    def run(self, item: Array, states: Sequence[Array]) -> list[Array]:
        """Runs one row, as the file takes it. Returns the output, then every next state. Raises what ONNX Runtime
        raises."""
        feeds = {self._reading.input.name: item, **self._constants}
        feeds |= {state.input.name: array for state, array in zip(self._reading.states, states, strict=True)}
        names = [self._reading.output.name, *(state.output for state in self._reading.states)]
        found: list[Array] = self._session.run(names, feeds)
        return found
