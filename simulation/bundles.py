"""The bundles that the simulation serves: usual manifests with graphs of integer arithmetic, and those of
`exported`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

from service.repository.bundle import Bundle, VariantGraphs
from service.repository.manifest import (
    BASE_VARIANT,
    Manifest,
    Parity,
    ReadoutSpec,
    SpecialTokens,
    StateSpec,
    StepSpec,
    TensorSpec,
    VocabularySpec,
)
from service.repository.vocabulary import Vocabulary
from simulation.arithmetic import BOS_ID, EOS_ID, VOCABULARY_SIZE, ReadoutGraph, StepGraph
from simulation.exported import LISTENER, TRANSLATOR, make_exported

__all__ = ["LAZY", "LISTENER", "MODELS", "OF_NUMBERS", "PROMPT", "TRANSLATOR", "make_bundle"]

LAZY = "lazy"
"""A model without a start token and without a readout: its graphs cannot compute the next logits from a state."""
PROMPT = "prompt"
"""A model with a start token and a readout."""
OF_NUMBERS = (LAZY, PROMPT)
"""The models without ONNX files."""
MODELS = (*OF_NUMBERS, LISTENER, TRANSLATOR)
_NAMES = tuple(f"t{token}" for token in range(VOCABULARY_SIZE))


def make_bundle(model: str, version: int, fails: Callable[[], bool]) -> Bundle:
    """Returns a bundle. fails: whether a run of its graphs must raise."""
    if model in (LISTENER, TRANSLATOR):
        return make_exported(model, fails)
    manifest = _manifest(model, version)
    readout = None if manifest.readout is None else cast(Any, ReadoutGraph())
    graphs = VariantGraphs(cast(Any, StepGraph(fails)), manifest.step, readout, manifest.readout)
    vocabulary = _vocabulary()
    return Bundle(
        folder=Path(model) / str(version),
        manifest=manifest,
        manifest_digest=f"{model}{version}".ljust(64, "0"),
        source_vocabulary=None,
        step_vocabulary=vocabulary,
        target_vocabulary=vocabulary,
        encoder=None,
        variants={BASE_VARIANT: graphs},
    )


@cache
def _vocabulary() -> Vocabulary:
    return Vocabulary(_NAMES, owner="the simulated vocabulary", tokenizer="whitespace", lowercase=False)


@cache
def _manifest(model: str, version: int) -> Manifest:
    has_start = model == PROMPT
    files = ["step.onnx", "target.txt", *(["readout.onnx"] if has_start else [])]
    logits = TensorSpec(name="logits", dtype="float32", shape=("batch", VOCABULARY_SIZE))
    return Manifest(
        model=model,
        version=version,
        description="whole numbers",
        step=StepSpec(
            file="step.onnx",
            tokens=TensorSpec(name="tokens", dtype="int64", shape=("batch", "time")),
            lengths=TensorSpec(name="lengths", dtype="int64", shape=("batch",)),
            logits=TensorSpec(name="logits", dtype="float32", shape=("batch", "time", VOCABULARY_SIZE)),
        ),
        readout=ReadoutSpec(file="readout.onnx", states=("hidden",), logits=logits) if has_start else None,
        states=(
            StateSpec(
                name="hidden",
                input=TensorSpec(name="hidden", dtype="float32", shape=(1, "batch", 2)),
                output="next_hidden",
            ),
        ),
        target_vocabulary=VocabularySpec(file="target.txt", size=VOCABULARY_SIZE, tokenizer="whitespace"),
        special_tokens=SpecialTokens(bos_id=BOS_ID if has_start else None, eos_id=EOS_ID),
        max_tokens=20,
        digests=dict.fromkeys(files, "0" * 64),
        exported_with={"simulation": "1"},
        parity=Parity(tolerance=0.0, max_abs_error={}, num_rows=0),
        evaluation={},
    )
