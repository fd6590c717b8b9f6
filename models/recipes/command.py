"""The command line that recipes have: `train`, which goes on with a run that was stopped, and `evaluate`."""

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


def run(  # what a recipe's command line is made of
    recipe: str,
    about: str,
    *,
    numbers: Mapping[str, int],
    compared_with: str,
    train: Callable[[argparse.Namespace], object],
    evaluate: Callable[[Path], object],
    arguments: Sequence[str] | None = None,
) -> None:
    """Parses `arguments`, or the process's own, and calls `train` with what was parsed or `evaluate` with a checkpoint.

    recipe: its module; about: the first line of its docstring; numbers: defaults of the flags that are whole numbers,
    by their names in `_ABOUT`, beside `--run`, a folder, and `--seed`; compared_with: what `evaluate` compares a
    checkpoint with. Raises SystemExit for arguments that cannot be, and what `train` and `evaluate` raise.
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
