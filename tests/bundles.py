"""Makes small bundles with ONNX alone: LSTM language models of random weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.heads import TOP_K, add_heads
from service.repository.manifest import (
    FILE_NAME,
    Manifest,
    Parity,
    ReadoutSpec,
    SpecialTokens,
    StateSpec,
    StepSpec,
    TensorSpec,
    VariantSpec,
    VocabularySpec,
)

EMBEDDING_SIZE, HIDDEN_SIZE, VOCABULARY_SIZE = 8, 24, 17
EOS_ID = 3


def write_language_model(
    repository: Path,
    *,
    model: str = "tiny-lm",
    version: int = 1,
    bos_id: int | None = None,
    eos_id: int | None = EOS_ID,
    seed: int = 0,
    has_heads: bool = False,
    variants: Mapping[str, int] = MappingProxyType({}),
    hidden_size: int = HIDDEN_SIZE,
) -> Path:
    """Writes a bundle to `repository/model/version` and returns that folder. It has one LSTM layer, and the states
    `hidden` and `cell`, [1, B, H] each.

    has_heads: whether the step graph has heads and the bundle has a readout. variants: the seed of the weights of each
    variant, by name.
    """
    folder = repository / model / str(version)
    folder.mkdir(parents=True)
    (folder / "target.txt").write_text("".join(f"t{index}\n" for index in range(VOCABULARY_SIZE)))
    state = (1, "batch", hidden_size)
    step, readout = _write_graphs(folder, "", seed, hidden_size, has_heads=has_heads)
    parity = Parity(tolerance=0.0, max_abs_error={}, num_rows=0)
    others = {}
    for name, other_seed in variants.items():
        graphs = _write_graphs(folder, f"{name}.", other_seed, hidden_size, has_heads=has_heads)
        others[name] = VariantSpec(
            step=graphs[0], readout=graphs[1], description="other weights", parity=parity, evaluation={}
        )
    manifest = Manifest(
        model=model,
        version=version,
        description="a random LSTM language model",
        step=step,
        readout=readout,
        variants=others,
        states=tuple(
            StateSpec(name=n, input=TensorSpec(name=n, dtype="float32", shape=state), output=f"next_{n}")
            for n in ("hidden", "cell")
        ),
        target_vocabulary=VocabularySpec(file="target.txt", size=VOCABULARY_SIZE, tokenizer="whitespace"),
        special_tokens=SpecialTokens(bos_id=bos_id, eos_id=eos_id),
        max_tokens=20,
        digests={file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()},
        exported_with={"onnx": onnx.__version__},
        parity=parity,
        evaluation={},
    )
    (folder / FILE_NAME).write_text(manifest.model_dump_json())
    return folder


def _write_graphs(
    folder: Path, prefix: str, seed: int, hidden_size: int, *, has_heads: bool
) -> tuple[StepSpec, ReadoutSpec | None]:
    """Writes a step graph and, with `has_heads`, a readout. Returns their specs."""
    step = StepSpec(
        file=f"{prefix}step.onnx",
        tokens=TensorSpec(name="tokens", dtype="int64", shape=("batch", "time")),
        lengths=TensorSpec(name="lengths", dtype="int64", shape=("batch",)),
        logits=TensorSpec(name="logits", dtype="float32", shape=("batch", "time", VOCABULARY_SIZE)),
    )
    model = _step_graph(np.random.default_rng(seed), hidden_size)
    readout = None
    if has_heads:
        projection = next(one for one in model.graph.initializer if one.name == "projection")
        onnx.save(_readout_graph(projection, hidden_size), folder / f"{prefix}readout.onnx")
        logits = TensorSpec(name="logits", dtype="float32", shape=("batch", VOCABULARY_SIZE))
        readout = ReadoutSpec(file=f"{prefix}readout.onnx", states=("hidden",), logits=logits)
        next_token = TensorSpec(name="next_token", dtype="int64", shape=("batch", "time"))
        step = step.model_copy(update={"next_token": next_token, "top_k": TOP_K})
        add_heads(model, step)
    onnx.save(model, folder / step.file)
    return step, readout


def _readout_graph(projection: TensorProto, size: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Squeeze", ["hidden", "zero"], ["outputs"]),
        helper.make_node("MatMul", ["outputs", "projection"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "readout",
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [1, "batch", size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", VOCABULARY_SIZE])],
        [projection, numpy_helper.from_array(np.array([0], np.int64), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def _step_graph(generator: np.random.Generator, size: int) -> onnx.ModelProto:
    def weight(name: str, *shape: int) -> TensorProto:
        values: NDArray[np.float32] = (generator.standard_normal(shape) * 0.7).astype(np.float32)
        return numpy_helper.from_array(values, name)

    weights = [
        weight("embedding", VOCABULARY_SIZE, EMBEDDING_SIZE),
        weight("W", 1, 4 * size, EMBEDDING_SIZE),
        weight("R", 1, 4 * size, size),
        weight("B", 1, 8 * size),
        weight("projection", size, VOCABULARY_SIZE),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    nodes = [
        helper.make_node("Transpose", ["tokens"], ["tokens_tb"], perm=[1, 0]),
        helper.make_node("Gather", ["embedding", "tokens_tb"], ["embedded"]),
        helper.make_node("Cast", ["lengths"], ["sequence_lens"], to=TensorProto.INT32),
        helper.make_node(
            "LSTM",
            ["embedded", "W", "R", "B", "sequence_lens", "hidden", "cell"],
            ["outputs", "next_hidden", "next_cell"],
            hidden_size=size,
        ),
        helper.make_node("Squeeze", ["outputs", "one"], ["outputs_tbh"]),
        helper.make_node("Transpose", ["outputs_tbh"], ["outputs_bth"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["outputs_bth", "projection"], ["logits"]),
    ]
    state: list[str | int | None] = [1, "batch", size]
    graph = helper.make_graph(
        nodes,
        "step",
        [
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "time"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, state),
            helper.make_tensor_value_info("cell", TensorProto.FLOAT, state),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "time", VOCABULARY_SIZE]),
            helper.make_tensor_value_info("next_hidden", TensorProto.FLOAT, state),
            helper.make_tensor_value_info("next_cell", TensorProto.FLOAT, state),
        ],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
