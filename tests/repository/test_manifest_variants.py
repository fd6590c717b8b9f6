"""Heads, readouts and variants that contradict the rest of a manifest are refused, with a message that names the
place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from service.repository.manifest import Manifest
from tests import domain

SIZE = len(domain.TARGET_NAMES)
READOUT = {
    "file": "readout.onnx",
    "states": ["hidden"],
    "contexts": ["memory"],
    "logits": {"name": "logits", "dtype": "float32", "shape": ["batch", SIZE]},
}
NEXT_TOKEN = {"name": "next_token", "dtype": "int64", "shape": ["batch", "time"]}
TOP_K = {
    "k": {"name": "k", "dtype": "int64", "shape": [1]},
    "log_probabilities": {"name": "top", "dtype": "float32", "shape": ["batch", "time", "k"]},
    "token_ids": {"name": "ids", "dtype": "int64", "shape": ["batch", "time", "k"]},
}


def whole() -> dict[str, Any]:
    """Returns a manifest as JSON, with heads, a readout and a variant."""
    values = domain.manifest(contexts=(domain.context("memory"),), has_encoder=True).model_dump(mode="json")
    values["step"] |= {"next_token": copy.deepcopy(NEXT_TOKEN), "top_k": copy.deepcopy(TOP_K)}
    values["readout"] = copy.deepcopy(READOUT)
    values["variants"] = {
        "int8": {
            "step": {**copy.deepcopy(values["step"]), "file": "step.int8.onnx", "max_chunk": 1},
            "readout": {**copy.deepcopy(READOUT), "file": "readout.int8.onnx"},
            "description": "in 8-bit integers",
            "parity": values["parity"],
            "evaluation": {},
        }
    }
    for file in ("readout.onnx", "step.int8.onnx", "readout.int8.onnx"):
        values["digests"][file] = domain.DIGEST
    return values


def test_a_whole_manifest_names_the_files_of_all_its_graphs() -> None:
    manifest = Manifest.model_validate(whole())
    assert manifest.variants["int8"].step.max_chunk == 1
    graphs = ("encoder.onnx", "step.onnx", "readout.onnx", "step.int8.onnx", "readout.int8.onnx")
    assert manifest.files == (*graphs, "source.txt", "target.txt")
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("step.next_token.dtype", "float32", "step.next_token must be int64 ['batch', 'time'], not float32"),
        ("step.next_token.shape", ["batch"], "step.next_token must be int64 ['batch', 'time'], not int64 ['batch']"),
        ("step.top_k.k.shape", [2], "step.top_k.k must be int64 [1], not int64 [2]"),
        ("step.top_k.token_ids.dtype", "float32", "step.top_k.token_ids must be int64 ['batch', 'time', 'k']"),
        ("step.top_k.log_probabilities.shape", ["batch", "k"], "step.top_k.log_probabilities must be float32 ['batch'"),
        ("step.max_chunk", 0, "greater than or equal to 1"),
        ("readout.logits.shape", ["batch", SIZE + 1], f"readout.logits must be float32 ['batch', {SIZE}], not"),
        ("readout.states", ["hidden", "mood"], "readout reads mood, which is not a state or a context"),
        ("readout.contexts", ["memories"], "readout reads memories, which is not a state or a context"),
        ("variants.int8.step.logits.shape", ["batch", "time", 3], "variants.int8.step.logits must be float32 ['batch'"),
        ("variants.int8.readout.logits.shape", ["batch", 3], "variants.int8.readout.logits must be float32 ['batch'"),
        ("variants.int8.readout.states", ["mood"], "variants.int8.readout reads mood, which is not a state or a"),
        ("variants.int8.step.file", "step.other.onnx", "digests lacks step.other.onnx"),
    ],
)
def test_contradictions_are_refused_with_their_place(path: str, value: object, message: str) -> None:
    values = whole()
    *parents, last = path.split(".")
    part = values
    for name in parents:
        part = part[name]
    part[last] = value
    with pytest.raises(ValidationError) as refusal:
        Manifest.model_validate(values)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "message"), [("fp32", "variants must not name fp32"), ("INT8", "should match pattern")]
)
def test_a_variant_has_a_name_of_its_own(name: str, message: str) -> None:
    """The name fp32 belongs to the manifest's own step."""
    values = whole()
    values["variants"][name] = values["variants"].pop("int8")
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate(values)
