"""Exports language models with random weights: real graphs of any size, for measurements."""

from __future__ import annotations

from pathlib import Path

from export.bundle import write_language_model
from export.vocabulary import Vocabulary
from models.language_model import LanguageModelConfig, random_language_model
from service.repository.manifest import SpecialTokens

MAX_BYTES = 200_000_000


def export_random_lm(
    *,
    name: str,
    hidden_size: int,
    num_layers: int,
    vocabulary_size: int,
    bos_id: int | None = None,
    eos_id: int | None = None,
    seed: int,
    int8: bool = False,
    to: Path,
    replace: bool,
) -> Path:
    """Writes the bundle `to/name/1` and returns its folder.

    The embedding is as wide as the layers. Tokens are t0, t1, ...; two of them may be the start and end tokens. Raises
    what `export.bundle.write_language_model` raises.
    """
    config = LanguageModelConfig(vocabulary_size, hidden_size, hidden_size, num_layers)
    return write_language_model(
        random_language_model(config, seed=seed),
        to=to,
        name=name,
        description=f"a random LSTM language model: {num_layers} x {hidden_size} units, {vocabulary_size} tokens",
        vocabulary=Vocabulary(tuple(f"t{index}" for index in range(vocabulary_size)), "whitespace"),
        special_tokens=SpecialTokens(bos_id=bos_id, eos_id=eos_id),
        evaluation={"seed": seed},
        int8=int8,
        max_bytes=MAX_BYTES,
        replace=replace,
    )
