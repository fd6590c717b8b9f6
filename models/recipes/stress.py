"""A streaming stress tagger: reads phonemes of running speech, and outputs the stress of each vowel a little later.

    python -m models.recipes.stress train --run runs/stress
    python -m models.recipes.stress evaluate runs/stress/best.safetensors

A killed `train` resumes after its last complete epoch when it is called again with the same `--run`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models import command_line, training
from models.curves import plot_curves
from models.recipes import stress_data as data
from models.tagger import Tagger, TaggerConfig

MODEL = "stress-en"

Batch = tuple[Tensor, Tensor]
"""tokens [B, T], and the tag to output after each, [B, T]."""

_WORDS_IN_A_STREAM = 24
_NO_TAG = -100


def train(run: Path, config: training.TrainingConfig, model_config: TaggerConfig, *, batch_size: int) -> None:
    """Trains into the folder `run`, or resumes the run there, and evaluates the best epoch."""
    torch.manual_seed(config.seed)
    model = Tagger(model_config)
    words, validation = data.load("train"), data.load("validation")

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        tokens, tags = batch
        with training.half_precision():
            logits = module(tokens, None, *model.stack.zeros(len(tokens)))[0]
        return cross_entropy(logits.float().flatten(0, 1), tags.flatten(), ignore_index=_NO_TAG)

    history = training.train(
        model,
        run=run,
        config=config,
        batches=lambda epoch: make_batches(words, batch_size, seed=config.seed * 1_000_003 + epoch),
        loss=loss,
        validation_error=lambda module: 1.0 - accuracy(tags_of(cast(Tagger, module), validation), validation)[1],
        metadata={"model": MODEL, "config": json.dumps(model_config.to_json())},
    )
    plot_curves(history, run / "curves.png", error_name="validation word error rate")
    write_evaluation(run / "best.safetensors")


def make_batches(words: Sequence[data.Word], batch_size: int, *, seed: int) -> list[Batch]:
    """Returns batches of streams of words in random order."""
    order = data.shuffled(words, seed=seed)
    streams = [
        data.stream(order[at : at + _WORDS_IN_A_STREAM])
        for at in range(0, len(order) - _WORDS_IN_A_STREAM, _WORDS_IN_A_STREAM)
    ]
    return [_to_batch(streams[at : at + batch_size]) for at in range(0, len(streams), batch_size)]


@torch.inference_mode()
def tags_of(model: Tagger, words: Sequence[data.Word]) -> list[tuple[int, ...]]:
    """Returns the tags of each word, in order. The words are read as one stream."""
    tokens, _ = data.stream(words)
    logits = model(torch.tensor([tokens]), None, *model.stack.zeros(1))[0]
    predicted = logits[0].argmax(dim=-1).tolist()[data.DELAY :]
    found, begin = [], 0
    for word in words:
        found.append(tuple(predicted[begin : begin + len(word.tags)]))
        begin += len(word.tags) + 1
    return found


def accuracy(found: Sequence[tuple[int, ...]], words: Sequence[data.Word]) -> tuple[float, float]:
    """Returns the share of vowels with the right stress, and of words in which all vowels have the right stress."""
    vowels = [
        (tag, truth)
        for tags, word in zip(found, words, strict=True)
        for tag, truth in zip(tags, word.tags, strict=True)
        if truth != data.UNSTRESSED_ID
    ]
    right = sum(tag == truth for tag, truth in vowels) / len(vowels)
    return right, sum(tags == word.tags for tags, word in zip(found, words, strict=True)) / len(words)


def load_model(checkpoint: Path) -> Tagger:
    """Returns a checkpoint's trained model, in evaluation mode. Raises ValueError for another recipe's checkpoint."""
    return training.load_trained(checkpoint, MODEL, lambda sizes: Tagger(TaggerConfig(**sizes)))


def write_evaluation(checkpoint: Path) -> dict[str, object]:
    """Compares a checkpoint with `Windows`, the baseline, on the test words. Writes `evaluation.json` beside it."""
    test = data.shuffled(data.load("test"), seed=0)
    windows = data.Windows(data.load("train"))
    vowels, words = accuracy(tags_of(load_model(checkpoint), test), test)
    base_vowels, base_words = accuracy([windows.tag(word) for word in test], test)
    return training.write_evaluation(
        checkpoint,
        {
            "task": f"stress of the vowels of running speech, {data.DELAY} phonemes later; CMUdict",
            "split": "SHA-256 of the word modulo 100: 0-4 validation, 5-14 test, 15-99 training",
            "num_test_words": len(test),
            "vowel_accuracy": vowels,
            "word_accuracy": words,
            "baseline": f"the commonest tag between the same neighbours, {data.DELAY} on each side or fewer",
            "baseline_vowel_accuracy": base_vowels,
            "baseline_word_accuracy": base_words,
        },
    )


def _to_batch(streams: Sequence[tuple[list[int], list[int]]]) -> Batch:
    longest = max(len(tokens) for tokens, _ in streams)
    tokens = torch.full((len(streams), longest), data.BOUNDARY_ID)
    tags = torch.full((len(streams), longest), _NO_TAG)
    for row, (stream, labels) in enumerate(streams):
        tokens[row, : len(stream)] = torch.tensor(stream)
        tags[row, : len(labels)] = torch.tensor(labels)
    return tokens, tags


def main() -> None:
    """Runs the command line; see the module's docstring."""
    command_line.run("models.recipes.stress", __doc__.splitlines()[0], train=_train, evaluate=write_evaluation)


def _train(
    *,
    run: command_line.Run,
    epochs: command_line.Epochs = 20,
    hidden: command_line.Hidden = 192,
    batch_size: command_line.BatchSize = 32,
    seed: command_line.Seed = 0,
) -> None:
    """Trains, or resumes a run that was stopped."""
    train(
        run,
        training.TrainingConfig(epochs=epochs, learning_rate=3e-3, warmup_steps=200, patience=4, seed=seed),
        TaggerConfig(len(data.vocabulary()), len(data.TAGS), 32, hidden, num_layers=2, dropout=0.1),
        batch_size=batch_size,
    )


if __name__ == "__main__":
    main()
