"""`carousel models`."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from carousel.cli.connection import Connection
from carousel.cli.printing import AsJson, print_json, print_table
from carousel.values import Port

_MAX_PARTS = 4
"""How many named parts a cell of the table names."""


def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """Lists the versions of models that the server has, and why one is not served."""
    connection: Connection = context.obj
    with connection.client() as client:
        found = list(client.models())
    if as_json:
        print_json(found)
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
            for one in found
        ),
        empty="the server has no models",
    )


def _parts(ports: Sequence[Port]) -> str:
    """The named inputs or outputs of a model: `obs [4], count int64`. Empty where vectors have no named parts."""
    told = [
        " ".join(
            [one.name, *([one.dtype] if one.dtype != "float32" else []), *([str(list(one.shape))] * bool(one.shape))]
        )
        for one in ports
    ]
    more = f" and {len(told) - _MAX_PARTS} more" if len(told) > _MAX_PARTS else ""
    return ", ".join(told[:_MAX_PARTS]) + more


def _kind(size: int) -> str:
    """The input or output of a model: vectors of so many numbers, or tokens."""
    return f"{size} number{'s' if size > 1 else ''}" if size else "tokens"
