"""English grapheme-to-phoneme on the CMU Pronouncing Dictionary, without stress.

    python -m models.recipes.g2p train --run runs/g2p
    python -m models.recipes.g2p evaluate runs/g2p/best.safetensors

A killed `train` resumes after its last complete epoch when it is called again with the same `--run`.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models import command_line, training
from models.curves import plot_curves
from models.metrics import ErrorRates, score
from models.recipes import cmudict_data as data
from models.search import search_all
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from models.targets import teacher_forced

MODEL = "g2p-en"
LABEL_SMOOTHING = 0.1
MAX_TARGET_TOKENS = 40
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
_GRAPHEME_IDS = {grapheme: index for index, grapheme in enumerate(data.GRAPHEMES)}

Batch = tuple[Tensor, Tensor, Tensor]
"""source [B, S], decoder input [B, T] beginning with the start token, expected [B, T] ending with the end token."""


def train(run: Path, config: training.TrainingConfig, model_config: Seq2SeqConfig, *, batch_size: int) -> None:
    """Trains into the folder `run`, or resumes the run there, and evaluates the best epoch."""
    torch.manual_seed(config.seed)
    model = Seq2Seq(model_config)
    pairs = data.load("train").pairs
    validation = data.load("validation")

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        source, inputs, expected = batch
        with training.half_precision():
            logits = module(source, None, inputs)
        return cross_entropy(
            logits.float().flatten(0, 1), expected.flatten(), ignore_index=PAD_ID, label_smoothing=LABEL_SMOOTHING
        )

    history = training.train(
        model,
        run=run,
        config=config,
        batches=lambda epoch: make_batches(pairs, batch_size, seed=config.seed * 1_000_003 + epoch),
        loss=loss,
        validation_error=lambda module: evaluate(cast(Seq2Seq, module), validation, beam_size=1).word_error_rate,
        metadata={"model": MODEL, "config": json.dumps(model_config.to_json())},
    )
    plot_curves(history, run / "curves.png", error_name="validation word error rate")
    write_evaluation(run / "best.safetensors")


def make_batches(pairs: list[tuple[str, data.Phonemes]], batch_size: int, *, seed: int) -> list[Batch]:
    """Returns shuffled batches whose sources have equal lengths, so that only targets need padding."""
    shuffled = sorted(pairs)
    generator = random.Random(seed)
    generator.shuffle(shuffled)
    by_length: dict[int, list[tuple[str, data.Phonemes]]] = defaultdict(list)
    for pair in shuffled:
        by_length[len(pair[0])].append(pair)
    groups = [group[at : at + batch_size] for group in by_length.values() for at in range(0, len(group), batch_size)]
    generator.shuffle(groups)
    return [_to_batch(group) for group in groups]


def evaluate(model: Seq2Seq, dictionary: data.Dictionary, *, beam_size: int, batch_size: int = 512) -> ErrorRates:
    """Decodes every word of `dictionary` and scores it against the nearest of its pronunciations."""
    hypotheses = transcribe(model, list(dictionary.words), beam_size=beam_size, batch_size=batch_size)
    return score((hypotheses[word], references) for word, references in dictionary.words.items())


def transcribe(model: Seq2Seq, words: list[str], *, beam_size: int, batch_size: int = 512) -> dict[str, list[str]]:
    """Returns the phonemes of each word. Raises KeyError for a letter outside the source vocabulary."""
    names = data.phonemes()
    decoded = search_all(
        model,
        [_ids(word) for word in words],
        beam_size=beam_size,
        max_tokens=MAX_TARGET_TOKENS,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        batch_size=batch_size,
    )
    return {word: [names[token] for token in ids] for word, ids in zip(words, decoded, strict=True)}


def load_model(checkpoint: Path) -> Seq2Seq:
    """Returns a checkpoint's trained model, in evaluation mode. Raises ValueError for another recipe's checkpoint."""
    return training.load_trained(checkpoint, MODEL, lambda sizes: Seq2Seq(Seq2SeqConfig(**sizes)))


def write_evaluation(checkpoint: Path) -> dict[str, object]:
    """Scores a checkpoint on the test split, greedily and with a beam of 4. Writes `evaluation.json` beside it."""
    model, test = load_model(checkpoint), data.load("test")
    found: dict[str, object] = {
        "task": "grapheme-to-phoneme, CMUdict without stress, nearest of the listed pronunciations",
        "split": "SHA-256 of the word modulo 100: 0-4 validation, 5-14 test, 15-99 training",
        "num_training_words": len(data.load("train").words),
        "num_validation_words": len(data.load("validation").words),
        "num_test_words": len(test.words),
        "greedy": asdict(evaluate(model, test, beam_size=1)),
        "beam_4": asdict(evaluate(model, test, beam_size=4)),
    }
    return training.write_evaluation(checkpoint, found)


def _to_batch(group: list[tuple[str, data.Phonemes]]) -> Batch:
    ids = {phoneme: index for index, phoneme in enumerate(data.phonemes())}
    targets = [[ids[phoneme] for phoneme in phonemes] for _, phonemes in group]
    inputs, expected = teacher_forced(targets, pad_id=PAD_ID, bos_id=BOS_ID, eos_id=EOS_ID)
    return _source([word for word, _ in group]), inputs, expected


def _source(words: list[str]) -> Tensor:
    return torch.tensor([_ids(word) for word in words])


def _ids(word: str) -> list[int]:
    return [_GRAPHEME_IDS[letter] for letter in word]


def main() -> None:
    """Runs the command line; see the module's docstring."""
    command_line.run("models.recipes.g2p", __doc__.splitlines()[0], train=_train, evaluate=write_evaluation)


def _train(
    *,
    run: command_line.Run,
    epochs: command_line.Epochs = 28,
    hidden: command_line.Hidden = 256,
    batch_size: command_line.BatchSize = 256,
    seed: command_line.Seed = 0,
) -> None:
    """Trains, or resumes a run that was stopped."""
    train(
        run,
        training.TrainingConfig(epochs=epochs, seed=seed),
        Seq2SeqConfig(len(data.GRAPHEMES), len(data.phonemes()), hidden_size=hidden),
        batch_size=batch_size,
    )


if __name__ == "__main__":
    main()
