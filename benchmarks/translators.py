"""A translator with random weights in two ONNX files, and a bare loop over them: `seq2seq` compares the served model
with it.

An LSTM reads the source. Another LSTM, whose input includes its last attentional vector (Luong et al. 2015), attends to
the encoder's outputs with a dot product, and returns logits.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from benchmarks.subjects import REPOSITORY
from benchmarks.transducers import Array, lstm, lstm_weights, model_of, value, weight

SOURCE_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Translator:
    """A translator. size: units of each layer; tokens: size of both vocabularies."""

    name: str
    size: int
    tokens: int

    @property
    def repository(self) -> Path:
        """The folder of its bundle and its files."""
        return REPOSITORY.parent / "translators"

    @property
    def files(self) -> list[Path]:
        """Its files: encoder and decoder."""
        return [self.repository / f"{self.name}.{part}.onnx" for part in ("encoder", "decoder")]

    def export(self) -> None:
        """Writes its files and its bundle, unless they exist."""
        if (self.repository / self.name / "1" / "manifest.json").exists():
            return
        self.repository.mkdir(parents=True, exist_ok=True)
        for make, file in zip((self._encoder, self._decoder), self.files, strict=True):
            onnx.save(make(), file)
        encoder, decoder = map(str, self.files)
        command = [sys.executable, "-m", "export", "onnx", decoder, "--encoder", encoder, "--name", self.name]
        command += ["--to", str(self.repository), "--replace", "--bos", "1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def _encoder(self) -> onnx.ModelProto:
        size = self.size
        zeros = helper.make_node("ConstantOfShape", ["state_shape"], ["zeros"])
        nodes = [
            helper.make_node("Gather", ["E", "source"], ["embedded"], axis=0),
            helper.make_node("Transpose", ["embedded"], ["x"], perm=[1, 0, 2]),
            helper.make_node("Shape", ["source"], ["shape"]),
            helper.make_node("Slice", ["shape", "zero", "one", "zero"], ["rows"]),
            helper.make_node("Concat", ["one", "rows", "units"], ["state_shape"], axis=0),
            zeros,
            *lstm("e", "x", ("zeros", "zeros_c"), "y", size),
            helper.make_node("Transpose", ["y"], ["memory"], perm=[1, 0, 2]),
        ]
        nodes.insert(6, helper.make_node("Identity", ["zeros"], ["zeros_c"]))
        numbers = {"zero": [0], "one": [1], "units": [size]}
        weights = [weight("E", self.tokens, size), *lstm_weights("e", size, size)]
        weights += [onnx.numpy_helper.from_array(np.array(one, np.int64), name) for name, one in numbers.items()]
        inputs = [helper.make_tensor_value_info("source", TensorProto.INT64, ["batch", "source"])]
        outputs = [value("memory", "batch", "source", size)]
        outputs += [value("zerosn", 1, "batch", size), value("zeros_cn", 1, "batch", size)]
        return model_of(nodes, inputs, outputs, weights)

    def _decoder(self) -> onnx.ModelProto:
        size = self.size
        nodes = [
            helper.make_node("Gather", ["E", "token"], ["embedded"], axis=0),  # [B, 1, size]
            helper.make_node("Unsqueeze", ["feed", "one"], ["fed"]),
            helper.make_node("Concat", ["embedded", "fed"], ["both"], axis=2),
            helper.make_node("Transpose", ["both"], ["x"], perm=[1, 0, 2]),
            *lstm("d", "x", ("zerosn", "zeros_cn"), "y", size),
            helper.make_node("Transpose", ["y"], ["query"], perm=[1, 0, 2]),
            helper.make_node("Transpose", ["memory"], ["keys"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["query", "keys"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
            helper.make_node("MatMul", ["weights", "memory"], ["context"]),
            helper.make_node("Concat", ["query", "context"], ["joined"], axis=2),
            helper.make_node("MatMul", ["joined", "A"], ["mixed"]),
            helper.make_node("Tanh", ["mixed"], ["attentional"]),
            helper.make_node("MatMul", ["attentional", "O"], ["logits"]),
            helper.make_node("Squeeze", ["attentional", "one"], ["next_feed"]),
        ]
        one = onnx.numpy_helper.from_array(np.array([1], np.int64), "one")
        weights = [weight("E", self.tokens, size), *lstm_weights("d", 2 * size, size), one]
        weights += [weight("A", 2 * size, size), weight("O", size, self.tokens)]
        states = [value("zerosn", 1, "batch", size), value("zeros_cn", 1, "batch", size), value("feed", "batch", size)]
        inputs = [helper.make_tensor_value_info("token", TensorProto.INT64, ["batch", 1]), *states]
        outputs = [value("logits", "batch", 1, self.tokens), value("zerosnn", 1, "batch", size)]
        outputs += [value("zeros_cnn", 1, "batch", size), value("next_feed", "batch", size)]
        return model_of(nodes, [*inputs, value("memory", "batch", "source", size)], outputs, weights)


class BareTranslations:
    """Encodes sources of one length in one run, then generates one token of each in each run of the decoder. One
    thread."""

    def __init__(self, translator: Translator, num_rows: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        encoder, self._decoder = (
            ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]) for file in translator.files
        )
        source = np.random.default_rng(0).integers(2, translator.tokens, (num_rows, SOURCE_LENGTH))
        self._memory, hidden, cell = encoder.run(["memory", "zerosn", "zeros_cn"], {"source": source})
        self._states: list[Array] = [hidden, cell, np.zeros((num_rows, translator.size), np.float32)]
        self._tokens: Array = np.ones((num_rows, 1), np.int64)
        self._names: list[Any] = ["logits", "zerosnn", "zeros_cnn", "next_feed"]

    def step(self) -> None:
        """Generates the next token of each source."""
        feeds = {"token": self._tokens, "memory": self._memory}
        feeds |= dict(zip(("zerosn", "zeros_cn", "feed"), self._states, strict=True))
        logits, *self._states = self._decoder.run(self._names, feeds)
        self._tokens = logits.argmax(axis=-1)
