"""`carousel models`."""

from __future__ import annotations

import typer

from carousel.cli.connection import Connection
from carousel.cli.printing import AsJson, print_json, print_table


def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """Lists the versions of models that the server has, and why one is not served."""
    connection: Connection = context.obj
    with connection.client() as client:
        found = list(client.models())
    if as_json:
        print_json(found)
        return
    print_table(
        ("MODEL", "VERSION#", "STATUS", "VARIANTS", "READS", "TOKENS#", "STATE#", "ABOUT"),
        (
            (
                one.model,
                one.version,
                one.status,
                ", ".join(one.variants),
                f"sources up to {one.max_source_length}" if one.has_encoder else "",
                len(one.target_vocabulary),
                f"{one.state_size_bytes:,} B",
                one.problem or one.description,
            )
            for one in found
        ),
        empty="the server has no models",
    )
