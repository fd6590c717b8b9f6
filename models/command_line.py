"""The command lines of recipes and studies: flags that several have, and how one is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

Run = Annotated[Path, Option(metavar="FOLDER", help="The run's folder.")]
Epochs = Annotated[int, Option(metavar="N", help="How often it sees all training data.")]
Hidden = Annotated[int, Option(metavar="N", help="Units of a layer.")]
BatchSize = Annotated[int, Option(metavar="N", help="Rows of a batch.")]
Window = Annotated[int, Option(metavar="N", help="Steps through which gradients flow back.")]
Seed = Annotated[int, Option(metavar="N", help="The seed of weights and data.")]


def run(module: str, about: str, arguments: Sequence[str] | None = None, **commands: Callable[..., object]) -> None:
    """Parses `arguments`, or the process's own, and calls the command that they name; a sole command has no name.

    module: what `python -m` runs. about: the help of several commands. commands: functions, whose parameters are the
    flags and whose docstrings are the help. Raises SystemExit, with 2 for wrong arguments, and the command's errors.
    """
    app = typer.Typer(
        help=about,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, command in commands.items():
        app.command(name)(command)
    typer.main.get_command(app)(arguments, prog_name=f"python -m {module}")
