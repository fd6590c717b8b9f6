"""Formats `--help`: plain text in sections. Lines wrap only between words, so a narrow terminal cuts no name."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from carousel.cli.failures import WRONG


class Command(TyperCommand):
    """A command that lists its options in sections."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the sections. typer calls it."""
        _write(formatter, _options(self, ctx))


class Group(TyperGroup):
    """A group that lists its commands in sections."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the sections. typer calls it."""
        found: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.commands[name]
            section = getattr(command, "rich_help_panel", None) or "Commands"
            first, _, _ = (command.help or "").partition("\n\n")
            found.setdefault(section, []).append((name, " ".join(first.split())))
        _write(formatter, {**found, **_options(self, ctx)})


def help_if_alone(context: typer.Context) -> None:
    """Prints the help of a group if no command is given. Raises typer.Exit then."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(WRONG)


def _options(command: TyperCommand | TyperGroup, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Returns the arguments and options by section, each with its syntax and its help."""
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
