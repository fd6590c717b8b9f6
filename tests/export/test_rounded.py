"""Weights in 8 bits take a quarter of the space, and give the bits of a graph with float weights."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np
import onnx
import torch
from torch import nn

from export.bundle import write_language_model
from export.graphs import export_graphs, export_module, serialize
from export.interface import seq2seq_interface
from export.proofs.runners import session_of
from export.quantize import quantize
from export.rounded import store_in_8_bits, with_float_weights
from export.vocabulary import Vocabulary
from models.language_model import LanguageModel, LanguageModelConfig
from models.rounding import round_weights, scales_of
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from service.repository.manifest import SpecialTokens, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=("batch", 192))
Y = TensorSpec(name="y", dtype="float32", shape=("batch", 256))


def linear() -> nn.Module:
    torch.manual_seed(0)
    first = nn.Linear(192, 192)
    with torch.no_grad():
        first.weight[3] = 0.0
        first.weight[4] *= 1e-12
    return nn.Sequential(first, nn.Tanh(), nn.Linear(192, 256)).eval()


def test_each_weight_is_rounded_by_half_a_scale_at_most_and_once() -> None:
    module = linear()
    before = [weights.clone() for weights in module.parameters()]
    round_weights(module)
    once = [weights.clone() for weights in module.parameters()]
    for was, now in zip(before, once, strict=True):
        if was.dim() == 1:
            assert torch.equal(was, now)
        else:
            assert ((was - now).abs() <= 0.5001 * scales_of(was)).all()
            assert not torch.equal(was, now)
            assert (now.abs().amax(dim=1) <= was.abs().amax(dim=1) * (1 + 2**-10)).all()
    round_weights(module)
    assert all(torch.equal(was, now) for was, now in zip(once, module.parameters(), strict=True))


def test_a_graph_in_8_bits_gives_the_same_bits_in_a_quarter_of_the_room() -> None:
    module = linear()
    round_weights(module)
    floats = export_module(module, (X,), (Y,))
    stored = store_in_8_bits(floats)
    assert len(serialize(stored)) < 0.3 * len(serialize(floats))
    x = np.random.default_rng(0).standard_normal((5, 192)).astype(np.float32)
    found, expected = (session_of(model).run(None, {"x": x})[0] for model in (stored, floats))
    assert found.tobytes() == expected.tobytes()
    again = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in with_float_weights(stored).graph.initializer}
    assert again.keys() == {tensor.name for tensor in floats.graph.initializer}
    names = [tensor.name.removesuffix("/int8") for tensor in stored.graph.initializer if tensor.name.endswith("/int8")]
    assert [name for name in again if name in names] == names, "in one order: the same model gives the same bytes"
    for tensor in floats.graph.initializer:
        assert again[tensor.name].tobytes() == onnx.numpy_helper.to_array(tensor).tobytes()


def test_weights_that_were_not_rounded_stay_as_they_are() -> None:
    floats = export_module(linear(), (X,), (Y,))
    assert store_in_8_bits(floats) == floats
    assert with_float_weights(floats) == floats


def test_a_bundle_in_8_bits_is_proven_and_has_a_trace_and_a_variant(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = ("<pad>", "<s>", "</s>", *(f"word{number}" for number in range(509)))
    model = LanguageModel(LanguageModelConfig(vocabulary_size=512, embedding_size=128, hidden_size=128, num_layers=1))
    before = {name: weights.clone() for name, weights in model.named_parameters()}
    folder = write_language_model(
        model,
        vocabulary=Vocabulary(words, "whitespace"),
        special_tokens=SpecialTokens(pad_id=0, bos_id=1, eos_id=2),
        to=tmp_path,
        name="words-in-8-bits",
        description="Random",
        evaluation={},
        int8=True,
        weights_in_8_bits=True,
    )
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    floats = 4 * sum(weights.numel() for weights in before.values())
    assert sizes["step.onnx"] < 0.3 * floats
    assert sizes["readout.onnx"] < 0.3 * 4 * before["projection.weight"].numel()
    assert sizes["step.int8.onnx"] < 0.3 * floats  # its embedding has 8 bits too
    assert sizes["trace.onnx"] < 0.1 * sizes["step.onnx"]  # its weights are in the step's file
    assert all(torch.equal(before[name], weights) for name, weights in model.named_parameters())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_scales_have_few_bits(scale: float) -> None:
    scales = scales_of(torch.randn(100, 8, generator=torch.Generator().manual_seed(0)) * scale)
    mantissa, _ = torch.frexp(scales)
    assert torch.equal(mantissa * 2**11, (mantissa * 2**11).round())


def test_logits_that_share_the_embedding_are_quantised_in_the_variant() -> None:
    sizes = {"embedding_size": 128, "hidden_size": 128, "attention_size": 16, "num_layers": 1}
    config = Seq2SeqConfig(600, 600, **sizes, has_shared_embedding=True)  # type: ignore[arg-type]  # by name
    interface = seq2seq_interface(config, max_source_length=8)
    step = export_graphs(interface, Seq2Seq(config).eval().decoder).step
    quantized = quantize(onnx.load_from_string(step))
    weights = {tensor.name: list(tensor.dims) for tensor in quantized.graph.initializer}
    integers = [weights[node.input[1]] for node in quantized.graph.node if node.op_type == "MatMulInteger"]
    assert sorted(integers) == [[128, 600], [256, 512]]
