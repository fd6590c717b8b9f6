"""Trains `translate-en-de`, and translates with it. The command is `models.recipes.translate`.

Each epoch cuts the texts into other pieces at random (subword regularisation, Kudo 2018), so that the model learns more
of few texts.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models import training
from models.curves import plot_curves
from models.recipes import translate_data as data
from models.recipes.translate_pieces import BOS_ID, EOS_ID, PAD_ID, Pieces
from models.rounding import round_weights
from models.search import search_all
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from models.smoothing import smoothed_cross_entropy
from models.targets import teacher_forced

MODEL = "translate-en-de"
LABEL_SMOOTHING = 0.1
MAX_TARGET_TOKENS = 96
MAX_SOURCE_TOKENS = 96
SMOOTHNESS = 0.5
"""Of the choice among the ways to cut a text, in training: the smaller the more even (alpha in Kudo 2018)."""
_PADDED_TOKENS = 4096
"""Of a batch, source and target."""

Batch = tuple[Tensor, Tensor, Tensor]
"""source [B, S], decoder input [B, T] beginning with the start token, expected [B, T] ending with the end token."""


def train(run: Path, corpus: Path, config: training.TrainingConfig, sizes: dict[str, int | float]) -> None:
    """Trains into the folder `run`, or goes on with the run that is there, and evaluates the best epoch."""
    torch.manual_seed(config.seed)
    pairs, validation = data.load(corpus, "train"), data.load(corpus, "validation")
    pieces = Pieces.of_run(run, pairs)
    sizes = {"source_vocabulary_size": len(pieces), "target_vocabulary_size": len(pieces), **sizes}
    model = Seq2Seq(Seq2SeqConfig(**sizes, has_shared_embedding=True))  # type: ignore[arg-type]  # by name
    print(f"{sum(weights.numel() for weights in model.parameters()):,} weights", flush=True)
    held_out = make_batches(pieces, validation)

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        source, inputs, expected = batch
        with training.half_precision():
            logits = module(source, None, inputs)
        return smoothed_cross_entropy(
            logits.flatten(0, 1), expected.flatten(), smoothing=LABEL_SMOOTHING, ignored=PAD_ID
        )

    history = training.train(
        model,
        run=run,
        config=config,
        batches=lambda epoch: make_batches(pieces, pairs, seed=config.seed * 1_000_003 + epoch),
        loss=loss,
        validation_error=lambda module: held_out_loss(cast(Seq2Seq, module), held_out),
        metadata={"model": MODEL, "config": json.dumps(model.config.to_json())},
    )
    plot_curves(history, run / "curves.png", error_name="validation loss, nats a piece")


@torch.no_grad()
def held_out_loss(model: Seq2Seq, batches: Sequence[Batch]) -> float:
    """Nats a piece, without label smoothing."""
    total, count = 0.0, 0
    for source, inputs, expected in batches:
        logits = model(source, None, inputs)
        total += float(cross_entropy(logits.flatten(0, 1), expected.flatten(), ignore_index=PAD_ID, reduction="sum"))
        count += int((expected != PAD_ID).sum())
    return total / count


def make_batches(pieces: Pieces, pairs: Sequence[data.Pair], *, seed: int | None = None) -> list[Batch]:
    """Batches of sources of one length each, so that only targets need padding. seed: of pieces and order; None: the
    likeliest pieces, always in the same order."""
    texts = [side for pair in pairs for side in (pair.english, pair.german)]
    cut = pieces.cut(texts) if seed is None else pieces.cut_at_random(texts, seed=seed, smoothness=SMOOTHNESS)
    by_length: dict[int, list[tuple[list[int], list[int]]]] = defaultdict(list)
    for source, target in zip(cut[::2], cut[1::2], strict=True):
        if len(source) <= MAX_SOURCE_TOKENS and len(target) < MAX_TARGET_TOKENS:
            by_length[len(source)].append((source, target))
    generator, batches = random.Random(seed or 0), []
    for length, rows in sorted(by_length.items()):
        generator.shuffle(rows)
        rows.sort(key=lambda row: len(row[1]) // 4)
        begin = 0
        while begin < len(rows):
            end = begin + 1
            while end < len(rows) and (end + 1 - begin) * (length + len(rows[end][1])) <= _PADDED_TOKENS:
                end += 1
            batches.append(_to_batch(rows[begin:end]))
            begin = end
    generator.shuffle(batches)
    return batches


def translate(
    model: Seq2Seq,
    pieces: Pieces,
    texts: Sequence[str],
    *,
    beam_size: int,
    length_penalty: float = 1.0,
    batch_size: int = 256,
) -> list[str]:
    """The German of each text. length_penalty: see `models.search.beam_search`."""
    decoded = search_all(
        model,
        pieces.cut(texts),
        beam_size=beam_size,
        max_tokens=MAX_TARGET_TOKENS,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        batch_size=batch_size,
        length_penalty=length_penalty,
    )
    return [pieces.text(ids) for ids in decoded]


def load_model(checkpoint: Path) -> Seq2Seq:
    """The trained model of a checkpoint, in evaluation mode, its weights rounded to 8 bits, as they are shipped. Raises
    ValueError when it is another recipe's."""
    model = training.load_trained(checkpoint, MODEL, lambda sizes: Seq2Seq(Seq2SeqConfig(**sizes)))
    round_weights(model)
    return model


def _to_batch(rows: Sequence[tuple[list[int], list[int]]]) -> Batch:
    targets = [target for _, target in rows]
    inputs, expected = teacher_forced(targets, pad_id=PAD_ID, bos_id=BOS_ID, eos_id=EOS_ID)
    return torch.tensor([source for source, _ in rows]), inputs, expected
