"""Transducers with random weights in ONNX files, and a bare loop over them: `seq2seq` compares the served model with
it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.subjects import REPOSITORY

MOST_SYMBOLS = 4
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Recogniser:
    """A transducer.

    features: numbers of a frame.
    hidden, layers: of the encoder's LSTM.
    joined: units of the joiner.
    tokens: size of the vocabulary, including the blank.
    gain: factor on the encoder's output, because each layer of random weights makes it smaller.
    penalty: penalty on the blank, so that about every fifth frame emits a token.
    """

    name: str
    features: int
    hidden: int
    layers: int
    joined: int
    tokens: int
    gain: float
    penalty: float

    @property
    def repository(self) -> Path:
        """The folder of its bundle and its files."""
        return REPOSITORY.parent / "transducers"

    @property
    def files(self) -> list[Path]:
        """Its files: encoder, prediction network, joiner."""
        return [self.repository / f"{self.name}.{part}.onnx" for part in ("encoder", "predictor", "joiner")]

    def export(self) -> None:
        """Writes its files and its bundle, unless they exist."""
        if (self.repository / self.name / "1" / "manifest.json").exists():
            return
        self.repository.mkdir(parents=True, exist_ok=True)
        for make, file in zip((self._encoder, self._predictor, self._joiner), self.files, strict=True):
            onnx.save(make(), file)
        command = [sys.executable, "-m", "export", "transducer", *map(str, self.files), "--name", self.name]
        command += ["--to", str(self.repository), "--max-symbols", str(MOST_SYMBOLS), "--replace"]
        subprocess.run([*command, "--blank-penalty", str(self.penalty)], check=True, stdout=subprocess.DEVNULL)

    def _encoder(self) -> onnx.ModelProto:
        nodes, weights, inputs, outputs = [], [], [value("frames", "batch", 1, self.features)], []
        nodes.append(helper.make_node("Transpose", ["frames"], ["x0"], perm=[1, 0, 2]))
        for layer in range(self.layers):
            size = self.hidden if layer else self.features
            weights += lstm_weights(f"l{layer}", size, self.hidden)
            nodes += lstm(f"l{layer}", f"x{layer}", (f"h{layer}", f"c{layer}"), f"x{layer + 1}", self.hidden)
            for name in (f"h{layer}", f"c{layer}"):
                inputs.append(value(name, 1, "batch", self.hidden))
                outputs.append(value(f"{name}n", 1, "batch", self.hidden))
        weights += [weight("O", self.hidden, self.joined, scale=self.gain)]
        nodes.append(helper.make_node("Transpose", [f"x{self.layers}"], ["rows"], perm=[1, 0, 2]))
        nodes.append(helper.make_node("MatMul", ["rows", "O"], ["encoded"]))
        return model_of(nodes, inputs, [value("encoded", "batch", 1, self.joined), *outputs], weights)

    def _predictor(self) -> onnx.ModelProto:
        size = self.joined
        nodes = [
            helper.make_node("Gather", ["E", "tokens"], ["embedded"], axis=0),
            helper.make_node("Transpose", ["embedded"], ["x"], perm=[1, 0, 2]),
            *lstm("p", "x", ("h", "c"), "y", size),
            helper.make_node("Transpose", ["y"], ["rows"], perm=[1, 0, 2]),
            helper.make_node("MatMul", ["rows", "O"], ["predicted"]),
        ]
        weights = [weight("E", self.tokens, 64), *lstm_weights("p", 64, size), weight("O", size, size, scale=0.3)]
        inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", 1])]
        inputs += [value("h", 1, "batch", size), value("c", 1, "batch", size)]
        outputs = [
            value("predicted", "batch", 1, size),
            value("hn", 1, "batch", size),
            value("cn", 1, "batch", size),
        ]
        return model_of(nodes, inputs, outputs, weights)

    def _joiner(self) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Add", ["encoded", "predicted"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["joined"]),
            helper.make_node("MatMul", ["joined", "O"], ["logits"]),
        ]
        inputs = [value("encoded", "batch", self.joined), value("predicted", "batch", self.joined)]
        return model_of(nodes, inputs, [value("logits", "batch", self.tokens)], [weight("O", self.joined, self.tokens)])


class BareLoop:
    """Decodes frames of many rows at once. One thread.

    A step runs the encoder once, then the joiner for the rows that are not done and the prediction network for the rows
    that emitted a token, until no row emits or each emitted MOST_SYMBOLS.
    """

    def __init__(self, recogniser: Recogniser, num_rows: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._encoder, self._predictor, self._joiner = (
            ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]) for file in recogniser.files
        )
        self._penalty = np.zeros(recogniser.tokens, np.float32)
        self._penalty[0] = recogniser.penalty
        self._states = _zeros(self._encoder.get_inputs()[1:], num_rows)
        start = np.zeros((num_rows, 1), np.int64)
        self._predicted, *self._carried = self._predictor.run(
            None, _feeds(self._predictor, start, _zeros(self._predictor.get_inputs()[1:], num_rows))
        )
        generator = np.random.default_rng(0)
        size = (32, num_rows, 1, recogniser.features)
        self._frames = cycle(generator.standard_normal(size).astype(np.float32))
        self.num_tokens = 0

    def step(self) -> None:
        """Decodes the next frame of each row."""
        encoded, *self._states = self._encoder.run(None, _feeds(self._encoder, next(self._frames), self._states))
        active = np.arange(len(encoded))
        for _ in range(MOST_SYMBOLS):
            joined = {"encoded": encoded[active, 0], "predicted": self._predicted[active, 0]}
            (logits,) = self._joiner.run(None, joined)
            tokens = (logits - self._penalty).argmax(axis=1)
            active, tokens = active[tokens != 0], tokens[tokens != 0]
            if not len(active):
                return
            self.num_tokens += len(active)
            carried = [state[:, active] for state in self._carried]
            found, *following = self._predictor.run(None, _feeds(self._predictor, tokens[:, np.newaxis], carried))
            self._predicted[active] = found
            for state, one in zip(self._carried, following, strict=True):
                state[:, active] = one


def _feeds(session: ort.InferenceSession, read: Array, states: Sequence[Array]) -> dict[str, Array]:
    return dict(zip([one.name for one in session.get_inputs()], [read, *states], strict=True))


def _zeros(inputs: Sequence[ort.NodeArg], num_rows: int) -> list[Array]:
    shapes = [[axis if isinstance(axis, int) else num_rows for axis in one.shape] for one in inputs]
    return [np.zeros(shape, np.float32) for shape in shapes]


def lstm(name: str, given: str, states: tuple[str, str], gives: str, size: int) -> list[onnx.NodeProto]:
    """Returns the nodes of an LSTM layer over [steps, rows, numbers].

    states: names of its hidden and cell inputs. The names of the next states are these with an `n` appended.
    """
    hidden, cell = states
    weights = [f"{name}.W", f"{name}.R", f"{name}.B"]
    outputs = [f"{name}.y", f"{hidden}n", f"{cell}n"]
    return [
        helper.make_node("LSTM", [given, *weights, "", hidden, cell], outputs, hidden_size=size),
        helper.make_node("Squeeze", [f"{name}.y", f"{name}.axis"], [gives]),
    ]


def lstm_weights(name: str, inputs: int, size: int) -> list[TensorProto]:
    """Returns the weights of `lstm`."""
    shapes = {"W": (1, 4 * size, inputs), "R": (1, 4 * size, size), "B": (1, 8 * size)}
    axis = numpy_helper.from_array(np.array([1], np.int64), f"{name}.axis")
    return [axis, *(weight(f"{name}.{part}", *shape) for part, shape in shapes.items())]


def weight(name: str, *shape: int, scale: float = 1.0) -> TensorProto:
    """Returns random numbers that depend only on the name and the shape."""
    fan = shape[-1] if name.endswith((".W", ".R")) else shape[0]  # ONNX stores these weights transposed
    values = np.random.default_rng((7, *name.encode())).standard_normal(shape) * scale / np.sqrt(fan)
    return numpy_helper.from_array(values.astype(np.float32), name)


def value(name: str, *shape: str | int) -> onnx.ValueInfoProto:
    """Returns the description of a tensor of 32-bit floats."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model_of(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[TensorProto]) -> onnx.ModelProto:
    """Returns a model. Raises what ONNX's checker raises."""
    graph = helper.make_graph(nodes, "benchmark", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model
