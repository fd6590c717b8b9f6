"""Prints results as tables for people, and as JSON for programs. Progress, notes and errors go to standard error."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from carousel.cli.layout import lines_of

OUTPUT = "standard output"
_err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print JSON, one object a line; errors also, on standard error. NaN, Infinity and -Infinity are strings.",
    ),
]


def echo(text: str | bytes = "", *, nl: bool = True) -> None:
    """Prints to standard output, at once, with a line end unless not `nl`."""
    with naming_output():
        typer.echo(text, nl=nl)


@contextmanager
def naming_output() -> Iterator[None]:
    """Gives errors of writing to standard output its name: Python names only files that it opened."""
    try:
        yield
    except OSError as error:
        error.filename = OUTPUT
        raise


def print_json(value: Any) -> None:
    """Prints one value as JSON on one line: see `json_line`."""
    echo(json_line(value))


def json_line(value: Any) -> str:
    """Returns a value as JSON without line ends: dataclasses as objects, times in ISO 8601. Numbers that JSON lacks
    become the strings NaN, Infinity and -Infinity, as in the wire's JSON."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Prints a table, or a note if there are no rows: see `layout.lines_of`."""
    found = list(rows)
    if not found:
        note(empty)
        return
    echo("\n".join(lines_of(columns, found, terminal_width())))


def terminal_width() -> int | None:
    """The width of the terminal in columns; None if standard output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def note(text: str, style: str = "") -> None:
    """Prints a line on standard error, without markup."""
    _err.print(text, style=style, markup=False)


def error(text: str) -> None:
    """Prints an error line on standard error."""
    _err.print("error: ", style="bold red", end="")
    note(text)


def progress() -> Progress:
    """Returns a progress bar on standard error. It is drawn only on a terminal, and removed at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value.isoformat() if isinstance(value, datetime) else value
