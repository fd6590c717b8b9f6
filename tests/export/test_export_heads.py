"""The heads rank the logits as a stable sort does, and compute only what is requested."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")
pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper

from export.graphs import serialize
from export.heads import NEXT_TOKEN, TOP_K, add_heads
from service.repository.manifest import StepSpec, TensorSpec

SIZES = [2, 64, 509, 512, 521, 1000, 8000]  # small sizes, a prime that is not cut into blocks, and sizes that are


def _session(size: int) -> onnxruntime.InferenceSession:
    """Returns a session of a step whose logits are its input, with the heads."""
    names = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "time", size]) for n in ("x", "logits")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["logits"])], "step", names[:1], names[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    spec = StepSpec(
        file="step.onnx",
        tokens=TensorSpec(name="tokens", dtype="int64", shape=("batch", "time")),
        lengths=TensorSpec(name="lengths", dtype="int64", shape=("batch",)),
        logits=TensorSpec(name="logits", dtype="float32", shape=("batch", "time", size)),
        next_token=NEXT_TOKEN,
        top_k=TOP_K,
    )
    add_heads(model, spec)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(serialize(model), options)


@pytest.mark.parametrize("size", SIZES)
def test_of_equal_logits_the_lowest_id_comes_first(size: int) -> None:
    """Logits with few distinct values have ties everywhere: within a block, between blocks, at the first and at the
    last id."""
    generator = np.random.default_rng(size)
    logits = generator.integers(-3, 3, (5, 4, size)).astype(np.float32)
    logits[0, 0] = 0
    logits[0, 1, -1] = 9
    logits[0, 2, [0, -1]] = 9
    logits[0, 3] = -np.inf
    logits[0, 3, size // 2 :] = -1e30
    session, k = _session(size), min(size, 7)
    (next_token,) = session.run(["next_token"], {"x": logits})
    np.testing.assert_array_equal(next_token, logits.argmax(axis=2))
    (ids,) = session.run(["top_token_ids"], {"x": logits, "k": np.array([k])})
    np.testing.assert_array_equal(ids, np.argsort(-logits, axis=2, kind="stable")[..., :k])


def test_the_next_token_is_the_first_of_the_best_where_log_probabilities_tie() -> None:
    """Logits that differ in their last bit can have the same log-probability. Ranked by it, the lower id would be
    first."""
    low, high = np.float32(3.0), np.nextafter(np.float32(3.0), np.float32(4))
    logits = np.full((1, 1, 4), -40, np.float32)
    logits[0, 0, 1:3] = low, high
    feeds = {"x": logits, "k": np.array([2])}
    token, log_probabilities, ids = _session(4).run(["next_token", "top_log_probabilities", "top_token_ids"], feeds)
    assert token.item() == 2
    assert ids.tolist() == [[[2, 1]]]
    assert log_probabilities[0, 0] == pytest.approx(np.log(0.5), abs=1e-6)


def test_without_k_the_best_are_empty_and_are_not_computed() -> None:
    """ONNX Runtime runs every node of a graph, whichever outputs are fetched. Only an `If` leaves nodes out."""
    session = _session(6)
    logits = np.zeros((2, 3, 6), np.float32)
    answer = session.run(["top_log_probabilities", "top_token_ids", "next_token"], {"x": logits})
    assert [part.size for part in answer[:2]] == [0, 0]
    assert answer[2].shape == (2, 3)
    assert [node.name for node in session.get_inputs()] == ["x"]
    assert [node.name for node in session.get_overridable_initializers()] == ["k"]


def test_log_probabilities_are_those_of_the_whole_vocabulary() -> None:
    logits: NDArray[np.float32] = np.random.default_rng(0).normal(0, 4, (3, 2, 600)).astype(np.float32)
    found, ids = _session(600).run(["top_log_probabilities", "top_token_ids"], {"x": logits, "k": np.array([600])})
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum(axis=2, keepdims=True))
    np.testing.assert_allclose(found, np.take_along_axis(expected, ids, axis=2), atol=1e-5)
    assert np.exp(found.astype(np.float64)).sum(axis=2) == pytest.approx(np.ones((3, 2)), abs=1e-4)


def test_only_large_vocabularies_are_cut_into_blocks() -> None:
    for size, num_argmax in ((64, 1), (521, 1), (1000, 2), (8000, 2)):
        names = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "time", size]) for n in ("x", "logits")]
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["logits"])], "step", names[:1], names[1:])
        model = onnx.ModelProto(graph=graph)
        spec = StepSpec(
            file="step.onnx",
            tokens=TensorSpec(name="tokens", dtype="int64", shape=("batch", "time")),
            lengths=TensorSpec(name="lengths", dtype="int64", shape=("batch",)),
            logits=TensorSpec(name="logits", dtype="float32", shape=("batch", "time", size)),
            next_token=NEXT_TOKEN,
        )
        add_heads(model, spec)
        assert [node.op_type for node in model.graph.node].count("ArgMax") == num_argmax
        assert [output.name for output in model.graph.output] == ["logits", "next_token"]
