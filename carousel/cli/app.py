"""The command `carousel`: all its commands, in the groups that `--help` shows. Exit codes: see `failures`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from carousel._version import __version__
from carousel.cli import (
    bench,
    failures,
    forecast,
    generate,
    inspect,
    models,
    score,
    sessions,
    step,
    stream,
    translate,
    watch,
)
from carousel.cli.connection import connected
from carousel.cli.help import Command, Group, help_if_alone

app = typer.Typer(
    name="carousel",
    cls=Group,
    rich_markup_mode=None,
    help="Talks to a Carousel server. Options of the connection may stand before or after a command's name.",
    epilog="Exit codes: 0 success; 1 refused or failed; 2 wrong command line or file; 3 server not reached, or no"
    " answer in time; 4 not found; 5 not allowed; 130 interrupted; 141 output closed.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = {
    "Models": (("models", models.list_models), ("load", models.load), ("unload", models.unload)),
    "Sequences, each in its own session": (
        ("generate", generate.generate),
        ("translate", translate.translate),
        ("forecast", forecast.forecast),
        ("score", score.score),
        ("inspect", inspect.inspect),
    ),
    "Sessions": (
        ("stream", stream.stream),
        ("step", step.step),
        ("watch", watch.watch),
        ("fork", sessions.fork),
        ("rewind", sessions.rewind),
    ),
    "Measuring": (("bench", bench.bench),),
}
for _group, _commands in _COMMANDS.items():
    for _name, _command in _commands:
        app.command(_name, cls=Command, rich_help_panel=_group)(connected(_command))
app.add_typer(sessions.app, name="sessions", rich_help_panel="Sessions")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"carousel {__version__}")
        raise typer.Exit


def _connect(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Takes the options that stand before the name of a command."""
    help_if_alone(context)


app.callback()(connected(_connect, is_first=True))


def main() -> None:
    """Runs the command line and exits."""
    sys.exit(failures.ended(lambda: app(standalone_mode=False, prog_name="carousel")))


if __name__ == "__main__":
    main()
