"""`carousel forecast`: prints the next values of a model of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from carousel.cli.connection import Connection
from carousel.cli.constants import Given, constants_of
from carousel.cli.printing import AsJson, echo, print_json
from carousel.cli.reading import shown, table, vectors_of
from carousel.client import Client
from carousel.values import ModelInfo


def forecast(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    history: Annotated[
        str | None,
        typer.Argument(help="What was observed, oldest first: steps between spaces, numbers between commas."),
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input", "-i", allow_dash=True, help="CSV file of the history, a step a line; - for standard input."
        ),
    ] = None,
    then: Annotated[
        str | None, typer.Option("--then", help="Steps to feed after the source; for a model with an encoder.")
    ] = None,
    horizon: Annotated[
        int | None, typer.Option("--horizon", "-n", min=1, help="Number of steps to forecast. Default: the model's.")
    ] = None,
    version: Annotated[int, typer.Option(min=0, help="Version of the model; 0: the newest.")] = 0,
    variant: Annotated[str, typer.Option(help="Variant of the model, such as int8.")] = "",
    constant: Given = None,
    as_json: AsJson = False,
) -> None:
    """Prints what follows a history of numbers: a line a step, its numbers separated by commas.

    An encoder reads the history as its source; a model without an encoder is fed the history. With --json an object a
    step: step (from 1), values.
    """
    if (history is None) == (input_file is None):
        raise typer.BadParameter("give either HISTORY or --input")
    connection: Connection = context.obj
    with connection.client() as client:
        info = client.model(model, version)
        if not info.value_size:
            raise typer.BadParameter(
                f"{model} outputs tokens, not numbers: use `carousel generate`", param_hint="MODEL"
            )
        read = table(input_file) if history is None else vectors_of(info, history, "HISTORY")
        if not read:
            example = " ".join([",".join(["370"] * (info.source_feature_size or info.feature_size))] * 3)
            given = "HISTORY" if input_file is None else "--input"
            raise typer.BadParameter(
                f'give at least one step, such as `carousel forecast {model} "{example}"`', param_hint=given
            )
        after = None if then is None else vectors_of(info, then, "--then")
        if after is not None and not info.has_encoder:
            raise typer.BadParameter(f"{model} has no encoder: add it to HISTORY", param_hint="--then")
        found = values_after(client, info, read, after, horizon, variant, constants_of(info, constant))
    for step, vector in enumerate(found, 1):
        if as_json:
            print_json({"step": step, "values": vector})
        else:
            echo(shown(vector))


def values_after(
    client: Client,
    info: ModelInfo,
    history: Sequence[Sequence[float]] | None,
    then: Sequence[Sequence[float]] | None,
    horizon: int | None,
    variant: str,
    constants: dict[str, Any],
) -> list[tuple[float, ...]]:
    """Returns the values of the next steps. history: the source for a model with an encoder, otherwise fed. then: fed
    after a source. Raises CarouselError."""
    return client.forecast(
        info.model,
        horizon or info.max_tokens,
        history if info.has_encoder else None,
        features=then if info.has_encoder else history,
        version=info.version,
        variant=variant,
        constants=constants,
    )
