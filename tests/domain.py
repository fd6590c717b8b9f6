"""Makes domain values without files or graphs: manifests, bundles, sessions."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, cast

import onnxruntime as ort

from service.engine.arena import Slot
from service.engine.engine import Engine
from service.engine.jobs import Item, Lane
from service.repository.bundle import Bundle, VariantGraphs
from service.repository.manifest import (
    BASE_VARIANT,
    Axis,
    ContextSpec,
    Dtype,
    EncoderSpec,
    Manifest,
    Parity,
    SpecialTokens,
    StateSpec,
    StepSpec,
    TensorSpec,
    VocabularySpec,
)
from service.repository.vocabulary import Vocabulary
from service.sessions.lifecycle import State
from service.sessions.served import Served
from service.sessions.session import CloseReason, Session

SOURCE_NAMES = ("a", "b", "c", "'", "é")
TARGET_NAMES = ("<pad>", "<s>", "</s>", "AA", "B", "K")
MAX_SOURCE_LENGTH = 20
DIGEST = "0" * 64


def state(name: str, shape: tuple[Axis | int, ...] = (1, "batch", 2), *, dtype: Dtype = "float32") -> StateSpec:
    """Returns the spec of a state tensor whose initial value is zero."""
    return StateSpec(name=name, input=TensorSpec(name=name, dtype=dtype, shape=shape), output=f"next_{name}")


def context(name: str, inner: tuple[int, ...] = (2,), *, dtype: Dtype = "float32") -> ContextSpec:
    """Returns the spec of a context tensor of shape [batch, source, *inner]."""
    tensor = TensorSpec(name=name, dtype=dtype, shape=("batch", "source", *inner))
    return ContextSpec(name=name, input=tensor, output=f"encoded_{name}")


def ids(items: Iterable[Item]) -> list[int]:
    """Returns the items that are token ids."""
    return [item for item in items if isinstance(item, int)]


def manifest(
    *,
    states: Iterable[StateSpec] = (state("hidden"), state("cell")),
    contexts: Iterable[ContextSpec] = (),
    has_encoder: bool = False,
    bos_id: int | None = 1,
) -> Manifest:
    """Returns a manifest of the model `made`, version 3. Its files do not exist."""
    size = len(TARGET_NAMES)
    encoder = EncoderSpec(
        file="encoder.onnx",
        source=TensorSpec(name="source", dtype="int64", shape=("batch", "source")),
        lengths=TensorSpec(name="source_lengths", dtype="int64", shape=("batch",)),
        max_source_length=MAX_SOURCE_LENGTH,
    )
    source = VocabularySpec(file="source.txt", size=len(SOURCE_NAMES), tokenizer="characters", lowercase=True)
    return Manifest(
        model="made",
        version=3,
        description="made for a test",
        encoder=encoder if has_encoder else None,
        step=StepSpec(
            file="step.onnx",
            tokens=TensorSpec(name="tokens", dtype="int64", shape=("batch", "time")),
            lengths=TensorSpec(name="lengths", dtype="int64", shape=("batch",)),
            logits=TensorSpec(name="logits", dtype="float32", shape=("batch", "time", size)),
        ),
        states=tuple(states),
        contexts=tuple(contexts),
        source_vocabulary=source if has_encoder else None,
        target_vocabulary=VocabularySpec(file="target.txt", size=size, tokenizer="whitespace"),
        special_tokens=SpecialTokens(bos_id=bos_id, eos_id=2),
        max_tokens=40,
        digests=dict.fromkeys(("encoder.onnx", "step.onnx", "source.txt", "target.txt"), DIGEST),
        exported_with={"onnx": "1.23"},
        parity=Parity(tolerance=1e-5, max_abs_error={"logits": 1e-7}, num_rows=8),
        evaluation={"word_error_rate": 0.29},
    )


def vocabulary() -> Vocabulary:
    """Returns the target vocabulary of the model `made`."""
    return Vocabulary(TARGET_NAMES, owner="the vocabulary of made", tokenizer="whitespace", lowercase=False)


@cache
def bundle(*, has_encoder: bool = False) -> Bundle:
    """Returns a bundle without graphs. Tests must not run it."""
    no_graph = cast(ort.InferenceSession, None)
    source = Vocabulary(SOURCE_NAMES, owner="the source vocabulary of made", tokenizer="characters", lowercase=True)
    target = vocabulary()
    return Bundle(
        folder=Path("made/3"),
        manifest=manifest(has_encoder=has_encoder),
        manifest_digest=DIGEST,
        source_vocabulary=source if has_encoder else None,
        step_vocabulary=target,
        target_vocabulary=target,
        encoder=no_graph if has_encoder else None,
        variants={BASE_VARIANT: VariantGraphs(no_graph, manifest(has_encoder=has_encoder).step)},
    )


def session(session_id: str = "s1", serial: int = 1, **changes: Any) -> Session:
    """Returns an idle session whose bundle has no graphs and no engine, last used at 0 s. changes: attributes to
    set."""

    def ignore(closed: Session, reason: CloseReason) -> None:
        pass

    made = Session(
        session_id,
        serial,
        Served(bundle(), cast(Engine, None)),
        Lane(Slot(1, 0), []),
        ignore,
        last_used_s=0.0,
        state=State.IDLE,
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made
