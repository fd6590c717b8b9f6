"""A bundle is loaded with every variant of its graphs, and refused if a graph differs from the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.repository.bundle import BundleError, load_bundle
from service.repository.manifest import FILE_NAME, sha256_of
from tests import bundles

SIZE, HIDDEN = bundles.VOCABULARY_SIZE, bundles.HIDDEN_SIZE
READOUT = {
    "file": "readout.onnx",
    "states": ["hidden"],
    "logits": {"name": "logits", "dtype": "float32", "shape": ["batch", SIZE]},
}
HEADS = {
    "next_token": {"name": "next_token", "dtype": "int64", "shape": ["batch", "time"]},
    "top_k": {
        "k": {"name": "k", "dtype": "int64", "shape": [1]},
        "log_probabilities": {"name": "top", "dtype": "float32", "shape": ["batch", "time", "k"]},
        "token_ids": {"name": "ids", "dtype": "int64", "shape": ["batch", "time", "k"]},
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle with heads, a readout, and a variant `same` whose step graph is a copy of the base's."""
    folder = bundles.write_language_model(tmp_path)
    _add_heads(folder / "step.onnx", has_default=True)
    (folder / "step.same.onnx").write_bytes((folder / "step.onnx").read_bytes())
    onnx.save(_readout("hidden"), folder / "readout.onnx")

    def declare(manifest: dict[str, Any]) -> None:
        manifest["step"] |= HEADS
        manifest["readout"] = READOUT
        manifest["variants"] = {
            "same": {
                "step": {**manifest["step"], "file": "step.same.onnx", "max_chunk": 1},
                "description": "the same again",
                "parity": manifest["parity"],
                "evaluation": {},
            }
        }

    _edit(folder, declare)
    return folder


def _add_heads(path: Path, *, has_default: bool) -> None:
    model = onnx.load(path)
    graph = model.graph
    graph.node.append(helper.make_node("ArgMax", ["logits"], ["next_token"], axis=2, keepdims=0))
    graph.node.append(helper.make_node("TopK", ["logits", "k"], ["top", "ids"], axis=2))
    graph.input.append(helper.make_tensor_value_info("k", TensorProto.INT64, [1]))
    if has_default:
        graph.initializer.append(helper.make_tensor("k", TensorProto.INT64, [1], [0]))
    best = ["batch", "time", "k"]
    graph.output.append(helper.make_tensor_value_info("next_token", TensorProto.INT64, best[:2]))
    graph.output.append(helper.make_tensor_value_info("top", TensorProto.FLOAT, best))
    graph.output.append(helper.make_tensor_value_info("ids", TensorProto.INT64, best))
    onnx.save(model, path)


def _readout(state: str) -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.zeros((HIDDEN, SIZE), np.float32), "projection")
    last = helper.make_tensor("last", TensorProto.INT64, [], [-1])
    graph = helper.make_graph(
        [
            helper.make_node("Gather", [state, "last"], ["top"]),
            helper.make_node("MatMul", ["top", "projection"], ["logits"]),
        ],
        "readout",
        [helper.make_tensor_value_info(state, TensorProto.FLOAT, [1, "batch", HIDDEN])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", SIZE])],
        [weights, last],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / FILE_NAME
    manifest = json.loads(path.read_text())
    change(manifest)
    for file in folder.iterdir():
        if file.name != FILE_NAME:
            manifest["digests"][file.name] = sha256_of(file)
    path.write_text(json.dumps(manifest))


def test_every_variant_is_loaded_and_the_base_among_them(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert set(bundle.variants) == {"fp32", "same"}
    base, same = bundle.variants["fp32"], bundle.variants["same"]
    assert base.step is bundle.step
    assert base.step_spec == bundle.manifest.step
    assert base.readout is not None
    assert base.readout_spec == bundle.manifest.readout
    assert same.step is not base.step
    assert same.step_spec.max_chunk == 1
    assert (same.readout, same.readout_spec) == (None, None)


def test_a_bundle_without_variants_has_only_the_base(tmp_path: Path) -> None:
    bundle = load_bundle(bundles.write_language_model(tmp_path))
    assert set(bundle.variants) == {"fp32"}
    assert bundle.variants["fp32"].readout is None


def lose_a_head(folder: Path) -> None:
    model = onnx.load(folder / "step.onnx")
    del model.graph.output[-1]
    onnx.save(model, folder / "step.onnx")


def require_k(folder: Path) -> None:
    other = bundles.write_language_model(folder.parent.parent / "other")
    _add_heads(other / "step.onnx", has_default=False)
    (folder / "step.same.onnx").write_bytes((other / "step.onnx").read_bytes())


def read_another_state(folder: Path) -> None:
    onnx.save(_readout("cell"), folder / "readout.onnx")


def forget_the_variant(folder: Path) -> None:
    (folder / "step.same.onnx").write_bytes(b"not a graph")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_a_head, "^step.onnx has no output ids, which the manifest names$"),
        (require_k, "^step.same.onnx: input k must have a default in the graph$"),
        (read_another_state, "^readout.onnx: input cell is not in the manifest$"),
        (forget_the_variant, "^step.same.onnx is not a graph that ONNX Runtime can load"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    _edit(folder, lambda manifest: None)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)
