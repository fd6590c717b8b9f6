"""Results for people, as tables, and for programs, as JSON. Progress and errors go to standard error."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON. Numbers that it has not are strings: NaN, Infinity, -Infinity.")
]


def print_json(value: Any) -> None:
    """Prints one value on one line: see `json_line`."""
    typer.echo(json_line(value))


def json_line(value: Any) -> str:
    """One value as JSON without line ends: dataclasses as objects, times as ISO 8601; numbers that JSON has not as the
    strings NaN, Infinity and -Infinity, as in the JSON of the wire."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table, or a line that says that there is nothing. Columns whose name ends with `#` are numbers."""
    lines = [[str(cell) for cell in row] for row in rows]
    if not lines:
        err.print(empty)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.rstrip("#"), justify="right" if column.endswith("#") else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    out.print(table)


def progress() -> Progress:
    """A bar on standard error, drawn only on a terminal, and gone when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


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
