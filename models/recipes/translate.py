"""English to German: what programs say to people.

    python -m models.recipes.translate train --run runs/translate
    python -m models.recipes.translate evaluate runs/translate/best.safetensors

`train` makes the corpus in `runs/translate-corpus` first, unless it is there: see `models.recipes.translate_data`. A
killed `train` continues from its last whole epoch when it is called again with the same `--run`.
"""

from __future__ import annotations

from pathlib import Path

from models import command_line, training
from models.recipes import translate_data as data
from models.recipes.translate_judged import write_evaluation
from models.recipes.translate_training import train

CORPUS = Path("runs/translate-corpus")


def main() -> None:
    """Runs the command line; see the module's docstring."""
    command_line.run("models.recipes.translate", __doc__.splitlines()[0], train=_train, evaluate=_evaluate)


def _train(
    *,
    run: command_line.Run,
    epochs: command_line.Epochs = 10,
    hidden: command_line.Hidden = 256,
    seed: command_line.Seed = 0,
) -> None:
    """Trains, or resumes a run that was stopped."""
    if not (CORPUS / "train.tsv").exists():
        CORPUS.mkdir(parents=True, exist_ok=True)
        data.build(CORPUS)
    train(
        run,
        CORPUS,
        training.TrainingConfig(epochs=epochs, seed=seed),
        dict.fromkeys(("embedding_size", "hidden_size", "attention_size"), hidden) | {"dropout": 0.2},
    )


def _evaluate(checkpoint: Path) -> None:
    """Compares a checkpoint with two baselines on the test split. Writes `evaluation.json` beside it."""
    write_evaluation(checkpoint, CORPUS)


if __name__ == "__main__":
    main()
