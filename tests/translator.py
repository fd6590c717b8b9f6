"""Makes a small subword translator for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from export.bundle import write_seq2seq
from export.vocabulary import Vocabulary
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from service.repository.manifest import SpecialTokens
from tests.subwords import model


def write_translator(folder: Path, name: str, *, trace: bool = False) -> Path:
    """Writes the bundle of a translator of random weights, which never generates the end token. Returns its folder."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.of_subwords(model())
    size = len(vocabulary.tokens)
    network = Seq2Seq(Seq2SeqConfig(size, size, embedding_size=16, hidden_size=16, attention_size=8, num_layers=1))
    with torch.no_grad():
        network.decoder.logits.bias[:260] -= 20.0  # suppresses control pieces, and bytes that form no characters
    return write_seq2seq(
        network,
        source=vocabulary,
        target=vocabulary,
        special_tokens=SpecialTokens(pad_id=0, bos_id=1, eos_id=2),
        to=folder,
        name=name,
        description="A translator of random weights",
        evaluation={},
        write_card=lambda manifest: "",
        trace=trace,
    )
