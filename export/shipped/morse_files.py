"""Writes a trained transducer as three ONNX files and a list of tokens, the common form of exported recognisers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from export.graphs import export_module, serialize
from export.vocabulary import Vocabulary
from models.recipes import morse_data as data
from models.transducer import Transducer
from service.repository.manifest import TensorSpec

VOCABULARY = Vocabulary(data.VOCABULARY, "characters")
"""The model's tokens; token 0 is the blank."""


class TransducerFiles(NamedTuple):
    """Paths of the written files."""

    encoder: Path
    predictor: Path
    joiner: Path
    tokens: Path


def write_files(model: Transducer, folder: Path) -> TransducerFiles:
    """Writes `encoder.onnx`, `predictor.onnx`, `joiner.onnx` and `tokens.txt` into a folder, and returns their paths.

    Creates the folder if it does not exist. The same weights give the same bytes. encoder: `frames` [batch, time, 320]
    to `encoded` [batch, time, J], with `hidden` and `cell`; predictor: `tokens` [batch, 1] to `predicted` [batch, 1,
    J], with `predictor_hidden` and `predictor_cell`; joiner: `encoded` and `predicted` [batch, J] to `logits` [batch,
    V]. A state's next value has the name of the state with `next_` before it. Raises ExportError for a model in
    training mode, and OSError when a file cannot be written.
    """
    config = model.config
    joined = ("batch", config.joined_size)
    of_encoder = _states("", config.num_layers, config.hidden_size)
    of_predictor = _states("predictor_", 1, config.predictor_size)
    graphs = {
        "encoder": _graph(
            model.encoder,
            [_floats("frames", "batch", "time", data.FRAME), *of_encoder],
            [_floats("encoded", "batch", "time", config.joined_size), *_following(of_encoder)],
        ),
        "predictor": _graph(
            model.predictor,
            [TensorSpec(name="tokens", dtype="int64", shape=("batch", 1)), *of_predictor],
            [_floats("predicted", "batch", 1, config.joined_size), *_following(of_predictor)],
        ),
        "joiner": _graph(
            model.joiner,
            [_floats("encoded", *joined), _floats("predicted", *joined)],
            [_floats("logits", "batch", config.vocabulary_size)],
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, graph in graphs.items():
        (folder / f"{name}.onnx").write_bytes(graph)
    tokens = folder / "tokens.txt"
    tokens.write_bytes(VOCABULARY.to_lines())
    return TransducerFiles(folder / "encoder.onnx", folder / "predictor.onnx", folder / "joiner.onnx", tokens)


def _graph(module: nn.Module, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> bytes:
    return serialize(export_module(module, inputs, outputs))


def _floats(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def _states(prefix: str, num_layers: int, size: int) -> list[TensorSpec]:
    return [_floats(f"{prefix}{name}", num_layers, "batch", size) for name in ("hidden", "cell")]


def _following(states: list[TensorSpec]) -> list[TensorSpec]:
    return [state.model_copy(update={"name": f"next_{state.name}"}) for state in states]
