"""`carousel sessions`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from carousel.cli.connection import Connection
from carousel.cli.printing import AsJson, err, print_json, print_table
from carousel.values import SessionInfo

app = typer.Typer(help="Sees, copies and ends sessions.", no_args_is_help=True)

SessionId = Annotated[str, typer.Argument(help="The session's id; to an admin, another's is principal/id.")]
_COLUMNS = ("SESSION", "MODEL", "POSITION#", "STATE", "OPEN#", "IDLE#", "KEPT", "WHERE")


@app.command("list")
def list_sessions(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Of this model alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Lists the sessions that are yours; an admin's are all. With --json one object a line."""
    connection: Connection = context.obj
    with connection.client() as client:
        found = client.sessions.list(model)
        if as_json:
            for one in found:
                print_json(one)
            return
        print_table(_COLUMNS, map(_row, found), empty="no sessions")


@app.command("get")
def get(context: typer.Context, session_id: SessionId, as_json: AsJson = False) -> None:
    """Shows one session."""
    connection: Connection = context.obj
    with connection.client() as client:
        _show(client.sessions.get(session_id), as_json=as_json)


@app.command("snapshot")
def snapshot(
    context: typer.Context,
    session_id: SessionId,
    to: Annotated[Path, typer.Option("--to", "-o", allow_dash=True, help="File to write; - for standard output.")],
) -> None:
    """Writes a session to a file, from which `restore` makes a session."""
    connection: Connection = context.obj
    with connection.client() as client:
        data = client.sessions.snapshot(session_id)
    if str(to) == "-":
        sys.stdout.buffer.write(data)
        return
    to.write_bytes(data)
    err.print(f"{len(data):,} bytes in {to}")


@app.command("restore")
def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="What `snapshot` wrote; - for standard input.", allow_dash=True)],
    session_id: Annotated[str, typer.Option("--id", help="Its new id; by default the one it had.")] = "",
    version: Annotated[int | None, typer.Option(min=1, help="Another version of the model to go on with.")] = None,
    as_json: AsJson = False,
) -> None:
    """Makes a session of a file that `snapshot` wrote."""
    data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    connection: Connection = context.obj
    with connection.client() as client:
        _show(client.sessions.restore(data, session_id=session_id, version=version), as_json=as_json)


@app.command("close")
def close(context: typer.Context, session_ids: Annotated[list[str], typer.Argument(help="Their ids.")]) -> None:
    """Closes sessions, whoever uses them."""
    connection: Connection = context.obj
    with connection.client() as client:
        for session_id in session_ids:
            err.print(f"{session_id}: closed at position {client.sessions.close(session_id)}")


def _show(session: SessionInfo, *, as_json: bool) -> None:
    if as_json:
        print_json(session)
    else:
        print_table(_COLUMNS, [_row(session)], empty="")


def _row(one: SessionInfo) -> tuple[object, ...]:
    now = datetime.now(UTC)
    where = "put aside" if one.spilled else "in memory" if one.attached else "in memory, left"
    kept = one.durability if one.checkpoint_position is None else f"{one.durability} to {one.checkpoint_position}"
    return (
        one.session_id,
        f"{one.model}/{one.version} {one.variant}",
        one.position,
        one.state,
        _age((now - one.open_time).total_seconds()),
        _age((now - one.last_used_time).total_seconds()),
        kept,
        where,
    )


def _age(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
