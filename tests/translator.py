"""Makes a small subword translator for tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from export.bundle import write_seq2seq
from export.vocabulary import Vocabulary
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from service.repository.manifest import FILE_NAME, Manifest, SpecialTokens
from tests.made_once import made_once
from tests.subwords import model

_NAME = "translator"


def write_translator(factory: pytest.TempPathFactory, name: str) -> Path:
    """Returns a new repository of a translator of random weights, which never generates the end token.

    It has a trace graph. The run of tests exports it once, and each caller gets a copy with its own name.
    """
    made = made_once(factory, _NAME, _export) / _NAME / "1"
    repository = factory.mktemp("repository")
    folder = shutil.copytree(made, repository / name / "1")
    manifest = Manifest.model_validate_json((folder / FILE_NAME).read_bytes())
    (folder / FILE_NAME).write_text(manifest.model_copy(update={"model": name}).model_dump_json())
    return repository


def _export(repository: Path) -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary.of_subwords(model())
    size = len(vocabulary.tokens)
    network = Seq2Seq(Seq2SeqConfig(size, size, embedding_size=16, hidden_size=16, attention_size=8, num_layers=1))
    with torch.no_grad():
        network.decoder.logits.bias[:260] -= 20.0  # suppresses control pieces, and bytes that form no characters
    write_seq2seq(
        network,
        source=vocabulary,
        target=vocabulary,
        special_tokens=SpecialTokens(pad_id=0, bos_id=1, eos_id=2),
        to=repository,
        name=_NAME,
        description="A translator of random weights",
        evaluation={},
        write_card=lambda manifest: "",
    )
