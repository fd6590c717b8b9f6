"""`carousel sessions`, and commands for one session that another program may be using."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from carousel.cli.connection import Connection, connected
from carousel.cli.help import Command, Group, help_if_alone
from carousel.cli.printing import AsJson, echo, note, print_json, print_table
from carousel.cli.reading import read_bytes
from carousel.values import SessionInfo

SessionId = Annotated[
    str, typer.Argument(help="The session's id. An admin names a session of another principal as principal/id.")
]
_COLUMNS = ("SESSION", "MODEL", "POSITION#", "STATE", "OPEN#", "IDLE#", "KEPT", "WHERE", "MARKS")


def list_sessions(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Only sessions of this model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Lists your sessions; for an admin, all sessions."""
    connection: Connection = context.obj
    with connection.client() as client:
        found = client.sessions.list(model)
        if as_json:
            for one in found:
                print_json(one)
            return
        print_table(_COLUMNS, map(_row, found), empty="no sessions")


def get(context: typer.Context, session_id: SessionId, as_json: AsJson = False) -> None:
    """Shows one session."""
    connection: Connection = context.obj
    with connection.client() as client:
        _show(client.sessions.get(session_id), as_json=as_json)


def snapshot(
    context: typer.Context,
    session_id: SessionId,
    to: Annotated[Path, typer.Option("--to", "-o", allow_dash=True, help="File to write; - for standard output.")],
    as_json: AsJson = False,
) -> None:
    """Writes a session to a file, for `restore`.

    With --json, and a file, one object: session_id, file, num_bytes.
    """
    connection: Connection = context.obj
    with connection.client() as client:
        data = client.sessions.snapshot(session_id)
    if str(to) == "-":
        echo(data, nl=False)
        return
    to.write_bytes(data)
    if as_json:
        print_json({"session_id": session_id, "file": str(to), "num_bytes": len(data)})
    else:
        note(f"{len(data):,} bytes in {to}")


def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="File that `snapshot` wrote; - for standard input.", allow_dash=True)],
    session_id: Annotated[str, typer.Option("--id", help="New id of the session; by default its earlier id.")] = "",
    version: Annotated[int | None, typer.Option(min=1, help="Continue with another version of the model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Makes a session from a file that `snapshot` wrote."""
    data = read_bytes(file)
    connection: Connection = context.obj
    with connection.client() as client:
        _show(client.sessions.restore(data, session_id=session_id, version=version), as_json=as_json)


def close(
    context: typer.Context,
    session_ids: Annotated[list[str], typer.Argument(help="Ids of the sessions.")],
    as_json: AsJson = False,
) -> None:
    """Closes sessions of any client. With --json one object for each: session_id, position."""
    connection: Connection = context.obj
    with connection.client() as client:
        for session_id in session_ids:
            position = client.sessions.close(session_id)
            if as_json:
                print_json({"session_id": session_id, "position": position})
            else:
                note(f"{session_id}: closed at position {position}")


def close_all(
    context: typer.Context,
    principal: Annotated[
        str,
        typer.Argument(
            metavar="[PRINCIPAL]", help="Name of the principal; by default you. Only an admin can name another."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Closes all sessions of a principal, including stored ones. With --json one object: closed_count."""
    connection: Connection = context.obj
    with connection.client() as client:
        count = client.sessions.close_all(principal)
    if as_json:
        print_json({"closed_count": count})
    else:
        note(f"{count:,} sessions closed")


def fork(
    context: typer.Context,
    session_id: SessionId,
    fork_id: Annotated[
        str, typer.Argument(metavar="[NEW_ID]", help="The copy's id; by default the server makes one.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Makes a copy of a session. Resume the copy with: `carousel stream MODEL --id NEW_ID --resume`."""
    connection: Connection = context.obj
    with connection.client() as client:
        _show(client.sessions.fork(session_id, fork_id), as_json=as_json)


def rewind(
    context: typer.Context,
    session_id: SessionId,
    position: Annotated[int, typer.Argument(min=0, help="A mark of the session: `sessions get` lists them.")],
    as_json: AsJson = False,
) -> None:
    """Rewinds a session to a mark, such as a mark of `step --mark` or of a line of `stream`."""
    connection: Connection = context.obj
    with connection.client() as client:
        _show(client.sessions.rewind(session_id, position), as_json=as_json)


def _connect(context: typer.Context) -> None:
    """Lists, copies, rewinds and closes sessions."""
    help_if_alone(context)


app = typer.Typer(invoke_without_command=True, cls=Group, rich_markup_mode=None)
app.callback()(connected(_connect))
_COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_sessions,
    "get": get,
    "snapshot": snapshot,
    "restore": restore,
    "fork": fork,
    "rewind": rewind,
    "close": close,
    "close-all": close_all,
}
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=Command)(connected(_command))


def _show(session: SessionInfo, *, as_json: bool) -> None:
    if as_json:
        print_json(session)
    else:
        print_table(_COLUMNS, [_row(session)], empty="")


def _row(one: SessionInfo) -> tuple[object, ...]:
    now = datetime.now(UTC)
    where = "spilled" if one.spilled else "in memory" if one.attached else "in memory, detached"
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
        " ".join(map(str, one.marks)),
    )


def _age(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
