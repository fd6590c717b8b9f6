"""A character language model of Python source, trained on the standard library of the running interpreter.

    python -m models.recipes.pychar train --run runs/pychar
    python -m models.recipes.pychar evaluate runs/pychar/best.safetensors

A killed `train` resumes after its last complete epoch when it is called again with the same `--run`.
"""

from __future__ import annotations

import json
import platform
import random
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models import command_line, training
from models.curves import plot_curves
from models.language_model import LanguageModel, LanguageModelConfig
from models.ngram import KneserNey
from models.recipes import python_source as data

MODEL = "pychar-en"
ORDER = 5
"""The order of the n-gram baseline."""

Batch = tuple[Tensor, Tensor, bool]
"""inputs [B, T], expected [B, T], and whether streams begin here; otherwise they continue the batch before."""

_CHUNK = 4096


def train(
    run: Path, config: training.TrainingConfig, model_config: LanguageModelConfig, *, batch_size: int, window: int
) -> None:
    """Trains into the folder `run`, or resumes the run there, and evaluates the best epoch.

    window: the number of characters through which gradients flow back. The state continues from window to window.
    """
    torch.manual_seed(config.seed)
    model = LanguageModel(model_config)
    files = [data.encode(text) for text in data.load("train")]
    validation = [data.encode(text) for text in data.load("validation")]
    carried: tuple[Tensor, ...] = ()

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        nonlocal carried
        inputs, expected, is_first = batch
        if is_first:
            carried = model.stack.zeros(len(inputs))
        with training.half_precision():
            logits, *following = module(inputs, None, *carried)
        carried = tuple(state.detach().float() for state in following)
        return cross_entropy(logits.float().flatten(0, 1), expected.flatten())

    history = training.train(
        model,
        run=run,
        config=config,
        batches=lambda epoch: list(
            make_batches(files, batch_size, window, seed=config.seed * 1_000_003 + epoch),
        ),
        loss=loss,
        validation_error=lambda module: bits_per_character(cast(LanguageModel, module), validation),
        metadata={"model": MODEL, "config": json.dumps(model_config.to_json()), "python": platform.python_version()},
    )
    plot_curves(history, run / "curves.png", error_name="validation bits per character", is_share=False)
    write_evaluation(run / "best.safetensors")


def make_batches(files: list[list[int]], batch_size: int, window: int, *, seed: int) -> Iterator[Batch]:
    """Yields the files in random order, joined, as `batch_size` streams of windows. The last characters are left
    out."""
    order = list(range(len(files)))
    random.Random(seed).shuffle(order)
    whole = torch.tensor([token for index in order for token in (data.START_ID, *files[index])])
    length = (len(whole) - 1) // batch_size // window * window
    for begin in range(0, length, window):
        starts = [stream * length + begin for stream in range(batch_size)]
        windows = torch.stack([whole[start : start + window + 1] for start in starts])
        yield windows[:, :-1], windows[:, 1:], begin == 0


@torch.inference_mode()
def bits_per_character(model: LanguageModel, files: list[list[int]]) -> float:
    """Returns the mean of -log2 p over all characters of the files, each read from its start."""
    total, count = 0.0, 0
    for file in files:
        states = model.stack.zeros(1)
        tokens = torch.tensor([data.START_ID, *file])
        for begin in range(0, len(file), _CHUNK):
            expected = tokens[begin + 1 : begin + 1 + _CHUNK]
            logits, *following = model(tokens[None, begin : begin + len(expected)], None, *states)
            states = tuple(following)
            total += cross_entropy(logits[0], expected, reduction="sum").item()
        count += len(file)
    return total / count / torch.log(torch.tensor(2.0)).item()


def load_model(checkpoint: Path) -> LanguageModel:
    """Returns a checkpoint's trained model, in evaluation mode. Raises ValueError for another recipe's checkpoint."""
    return training.load_trained(checkpoint, MODEL, lambda sizes: LanguageModel(LanguageModelConfig(**sizes)))


def write_evaluation(checkpoint: Path) -> dict[str, object]:
    """Compares a checkpoint with an n-gram of the same training files. Writes `evaluation.json` beside it."""
    files, test = ([data.encode(text) for text in data.load(split)] for split in ("train", "test"))
    baseline = KneserNey(([data.START_ID, *file] for file in files), order=ORDER, vocabulary_size=len(data.CHARACTERS))
    num_test = sum(map(len, test))
    return training.write_evaluation(
        checkpoint,
        {
            "task": f"the next character of Python source, the standard library of Python {platform.python_version()}",
            "split": "SHA-256 of the file's path modulo 20: 0 validation, 1 test, the others training",
            "num_training_characters": sum(map(len, files)),
            "num_test_characters": num_test,
            "bits_per_character": bits_per_character(load_model(checkpoint), test),
            "baseline": f"character {ORDER}-gram, interpolated Kneser-Ney",
            "baseline_bits_per_character": sum(baseline.bits([data.START_ID, *file]) for file in test) / num_test,
        },
    )


def main() -> None:
    """Runs the command line; see the module's docstring."""
    command_line.run("models.recipes.pychar", __doc__.splitlines()[0], train=_train, evaluate=write_evaluation)


def _train(
    *,
    run: command_line.Run,
    epochs: command_line.Epochs = 8,
    hidden: command_line.Hidden = 384,
    batch_size: command_line.BatchSize = 64,
    window: command_line.Window = 160,
    seed: command_line.Seed = 0,
) -> None:
    """Trains, or resumes a run that was stopped."""
    train(
        run,
        training.TrainingConfig(epochs=epochs, learning_rate=3e-3, warmup_steps=200, patience=3, seed=seed),
        LanguageModelConfig(len(data.CHARACTERS), 48, hidden),
        batch_size=batch_size,
        window=window,
    )


if __name__ == "__main__":
    main()
