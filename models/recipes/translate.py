"""English to German: what programs say to people.

    python -m models.recipes.translate train --run runs/translate
    python -m models.recipes.translate evaluate runs/translate/best.safetensors

`train` makes the corpus in `runs/translate-corpus` first, unless it is there: see `models.recipes.translate_data`. A
killed `train` continues from its last whole epoch when it is called again with the same `--run`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models import training
from models.recipes import command
from models.recipes import translate_data as data
from models.recipes.translate_judged import write_evaluation
from models.recipes.translate_training import train

CORPUS = Path("runs/translate-corpus")


def main() -> None:
    """The command line; see the module's docstring."""
    command.run(
        "models.recipes.translate",
        __doc__.splitlines()[0],
        numbers={"epochs": 10, "hidden": 256},
        compared_with="the test split and two baselines",
        train=_train,
        evaluate=lambda checkpoint: write_evaluation(checkpoint, CORPUS),
    )


def _train(parsed: argparse.Namespace) -> None:
    if not (CORPUS / "train.tsv").exists():
        CORPUS.mkdir(parents=True, exist_ok=True)
        data.build(CORPUS)
    train(
        parsed.run,
        CORPUS,
        training.TrainingConfig(epochs=parsed.epochs, seed=parsed.seed),
        dict.fromkeys(("embedding_size", "hidden_size", "attention_size"), parsed.hidden) | {"dropout": 0.2},
    )


if __name__ == "__main__":
    main()
