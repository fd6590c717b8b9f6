"""The command line of recipes: `train`, which resumes a stopped run, and `evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_ABOUT = {
    "epochs": "how often it sees all that it learns from",
    "hidden": "units of a layer",
    "batch-size": "rows of a batch",
    "window": "steps that gradients go back through",
    "seed": "of weights and data",
}


def run(  # the parts of a recipe's command line
    recipe: str,
    about: str,
    *,
    numbers: Mapping[str, int],
    compared_with: str,
    train: Callable[[argparse.Namespace], object],
    evaluate: Callable[[Path], object],
    arguments: Sequence[str] | None = None,
) -> None:
    """Parses `arguments`, or the process's own. Calls `train` with the parsed arguments, or `evaluate` with a
    checkpoint.

    recipe: its module. about: the first line of its docstring. numbers: defaults of the whole-number flags, by their
    names in `_ABOUT`; `--run`, a folder, and `--seed` are added. compared_with: what `evaluate` compares a checkpoint
    with. Raises SystemExit for wrong arguments, and the errors of `train` and `evaluate`.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {recipe}", description=about)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train, or go on with a run that was stopped")
    training.add_argument("--run", type=Path, required=True, help="the run's folder")
    for name, default in {**numbers, "seed": 0}.items():
        training.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{_ABOUT[name]} (default: {default})"
        )
    evaluation = commands.add_parser("evaluate", help=f"compare a checkpoint with {compared_with}")
    evaluation.add_argument("checkpoint", type=Path)
    parsed = parser.parse_args(arguments)
    if parsed.command == "evaluate":
        evaluate(parsed.checkpoint)
    else:
        train(parsed)
