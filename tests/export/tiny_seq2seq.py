"""A tiny encoder-decoder with attention, and its bundle, which several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from export.bundle import write_seq2seq
from export.vocabulary import Vocabulary
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from service.repository.manifest import SpecialTokens
from tests.made_once import made_once

CONFIG = Seq2SeqConfig(6, 7, embedding_size=8, hidden_size=16, attention_size=8)
MAX_SOURCE_LENGTH = 24
EXTRA_FILES = {"notes.txt": b"beside it\n"}


def tiny_model() -> Seq2Seq:
    """Returns the model in training mode, as after training. Its weights are always the same."""
    torch.manual_seed(0)
    return Seq2Seq(CONFIG)


def write_tiny(model: Seq2Seq, to: Path, **options: Any) -> Path:
    """Writes a bundle of such a model. Returns its folder."""
    return write_seq2seq(
        model,
        to=to,
        name="tiny",
        description="A tiny model with random weights",
        source=Vocabulary(("<pad>", "a", "b", "c", "d", "e"), "characters", lowercase=True),
        target=Vocabulary(("<pad>", "<s>", "</s>", "A", "B", "C", "D"), "whitespace"),
        special_tokens=SpecialTokens(pad_id=0, bos_id=1, eos_id=2),
        evaluation={"error": 1.0},
        max_source_length=MAX_SOURCE_LENGTH,
        **options,
    )


def tiny_bundle(factory: pytest.TempPathFactory) -> Path:
    """Returns the bundle of `tiny_model`, in its own repository. Tests must not change it."""

    def make(repository: Path) -> None:
        write_tiny(tiny_model(), repository, extra_files=EXTRA_FILES)

    return made_once(factory, "tiny-seq2seq", make) / "tiny" / "1"
