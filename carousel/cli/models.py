"""`carousel models`, `carousel load` and `carousel unload`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import typer

from carousel.cli.connection import Connection
from carousel.cli.failures import REFUSED
from carousel.cli.printing import AsJson, note, print_json, print_table
from carousel.values import ModelInfo, ModelStatus, Port

_MAX_PARTS = 4
"""The most named parts in a cell of the table."""


def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """Lists the versions of the server's models, and why one is not served."""
    connection: Connection = context.obj
    with connection.client() as client:
        _show(client.models(), as_json=as_json, empty="the server has no models")


def load(
    context: typer.Context,
    model: Annotated[str, typer.Argument(show_default="all", help="The model's name.")] = "",
    version: Annotated[int, typer.Option(min=0, help="Version of the model; 0: all versions.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Makes the server load new versions from its repository, and lists them.

    The exit code is 1 if one of them cannot be served. Open sessions keep their version.
    """
    connection: Connection = context.obj
    with connection.client() as client:
        found = client.load_models(model, version)
    _show(found, as_json=as_json, empty="there was nothing to load")
    if any(one.status is not ModelStatus.SERVING for one in found):
        raise typer.Exit(REFUSED)


def unload(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    version: Annotated[int, typer.Option(min=1, help="Version of the model.")],
    as_json: AsJson = False,
) -> None:
    """Makes the server stop serving a version. Its open sessions continue until they end.

    With --json one object: model, version, num_sessions (still open).
    """
    connection: Connection = context.obj
    with connection.client() as client:
        num_sessions = client.unload_model(model, version)
    if as_json:
        print_json({"model": model, "version": version, "num_sessions": num_sessions})
    else:
        stay = f"; {num_sessions} open session{'s continue' if num_sessions > 1 else ' continues'} with it"
        note(f"{model}/{version} is no longer served{stay if num_sessions else ''}")


def _show(models: Iterable[ModelInfo], *, as_json: bool, empty: str) -> None:
    if as_json:
        for one in models:
            print_json(one)
        return
    print_table(
        ("MODEL", "VERSION#", "STATUS", "VARIANTS", "SOURCE", "READS", "GIVES", "STATE#", "ABOUT"),
        (
            (
                one.model,
                one.version,
                one.status,
                ", ".join(one.variants),
                f"up to {one.max_source_length} x {_kind(one.source_feature_size)}" if one.has_encoder else "",
                _parts(one.inputs) or _kind(one.feature_size),
                f"{len(one.target_vocabulary)} tokens"
                if one.target_vocabulary
                else _parts(one.outputs) or _kind(one.value_size),
                f"{one.state_size_bytes:,} B",
                one.problem or one.description,
            )
            for one in models
        ),
        empty=empty,
    )


def _parts(ports: Sequence[Port]) -> str:
    """Returns the named inputs or outputs of a model, as `obs [4], count int64`; empty without names."""
    parts = [
        " ".join(
            [one.name, *([one.dtype] if one.dtype != "float32" else []), *([str(list(one.shape))] * bool(one.shape))]
        )
        for one in ports
    ]
    more = f" and {len(parts) - _MAX_PARTS} more" if len(parts) > _MAX_PARTS else ""
    return ", ".join(parts[:_MAX_PARTS]) + more


def _kind(size: int) -> str:
    """Returns the input or output of a model: its count of numbers, or tokens."""
    return f"{size} number{'s' if size > 1 else ''}" if size else "tokens"
