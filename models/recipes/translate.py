"""English to German: what programs say to people.

    python -m models.recipes.translate train --run runs/translate
    python -m models.recipes.translate evaluate runs/translate/best.safetensors

`train` makes the corpus first, unless it is there: see `models.recipes.translate_data`. A killed `train` continues from
its last whole epoch when it is called again with the same `--run`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from models import training
from models.recipes import translate_data as data
from models.recipes.translate_judged import write_evaluation
from models.recipes.translate_training import train

CORPUS = Path("runs/translate-corpus")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m models.recipes.translate", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    defaults = training.TrainingConfig()
    trained = commands.add_parser("train", help="train, or go on with a run that was stopped")
    trained.add_argument("--run", type=Path, default=Path("runs/translate"), help="folder of the run")
    trained.add_argument("--corpus", type=Path, default=CORPUS, help=f"folder of the corpus (default: {CORPUS})")
    trained.add_argument("--epochs", type=int, default=10)
    trained.add_argument("--hidden-size", type=int, default=256)
    trained.add_argument("--embedding-size", type=int, default=256)
    trained.add_argument("--attention-size", type=int, default=256)
    trained.add_argument("--dropout", type=float, default=0.2)
    trained.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    trained.add_argument("--seed", type=int, default=defaults.seed)
    evaluated = commands.add_parser("evaluate", help="judge a checkpoint, and the baselines, on the test split")
    evaluated.add_argument("checkpoint", type=Path)
    evaluated.add_argument("--corpus", type=Path, default=CORPUS, help=f"folder of the corpus (default: {CORPUS})")
    parsed = parser.parse_args(arguments)
    if parsed.command == "evaluate":
        write_evaluation(parsed.checkpoint, parsed.corpus)
        return
    if not (parsed.corpus / "train.tsv").exists():
        parsed.corpus.mkdir(parents=True, exist_ok=True)
        data.build(parsed.corpus)
    train(
        parsed.run,
        parsed.corpus,
        training.TrainingConfig(epochs=parsed.epochs, learning_rate=parsed.learning_rate, seed=parsed.seed),
        {
            "embedding_size": parsed.embedding_size,
            "hidden_size": parsed.hidden_size,
            "attention_size": parsed.attention_size,
            "dropout": parsed.dropout,
        },
    )


if __name__ == "__main__":
    main()
