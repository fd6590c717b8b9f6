"""What `--help` prints: plain text in sections, wrapped between words, so that no name is cut on a narrow terminal."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from carousel.cli.failures import WRONG


class Command(TyperCommand):
    """A command, whose options stand below the names of their groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Called by typer."""
        _write(formatter, _options(self, ctx))


class Group(TyperGroup):
    """A group of commands, which stand below the names of their own groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Called by typer."""
        found: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.commands[name]
            section = getattr(command, "rich_help_panel", None) or "Commands"
            first, _, _ = (command.help or "").partition("\n\n")
            found.setdefault(section, []).append((name, " ".join(first.split())))
        _write(formatter, {**found, **_options(self, ctx)})


def help_if_alone(context: typer.Context) -> None:
    """Prints the help of a group of commands that is given without a command. Raises typer.Exit."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(WRONG)


def _options(command: TyperCommand | TyperGroup, context: Any) -> dict[str, list[tuple[str, str]]]:
    """The arguments and options by their sections: each with what it takes, and its help."""
    found: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
        if record is not None:
            section = getattr(parameter, "rich_help_panel", None) or kind
            found.setdefault(section, []).append(record)
    if "Connection" in found:
        found["Connection"] = found.pop("Connection")
    return found


def _write(formatter: Any, sections: dict[str, list[tuple[str, str]]]) -> None:
    for name, rows in sections.items():
        with formatter.section(name):
            formatter.write_dl(rows)
