"""`carousel score`: how likely sequences are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from carousel._requests import Source
from carousel.cli.connection import Connection
from carousel.cli.constants import Given, constants_of
from carousel.cli.failures import LineError
from carousel.cli.printing import AsJson, print_json, print_table
from carousel.cli.reading import lines, named, source_of, tokens_of, visible
from carousel.errors import InvalidArgumentError

_TARGET = re.compile(r"targets\[(\d+)\]")
"""Matches the field of a refused target."""


def score(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[TARGET]...", help="Sequences: text, as the model splits it.")
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", "-i", allow_dash=True, help="Sequences, one a line; - for standard input."),
    ] = None,
    source: Annotated[str | None, typer.Option(help="What a model with an encoder reads.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to consume first: text, as the model splits it.")] = None,
    end: Annotated[bool, typer.Option("--end", help="Also score the end token after each sequence.")] = False,
    version: Annotated[int, typer.Option(min=0, help="Version of the model; 0: the newest.")] = 0,
    variant: Annotated[str, typer.Option(help="Variant of the model, such as int8.")] = "",
    constant: Given = None,
    as_json: AsJson = False,
) -> None:
    """Prints how likely sequences are: the logarithm of the probability of each sequence and of each of its tokens.

    With --json an object a sequence: target, tokens, log_probability, log_probabilities (one for each token, and with
    --end one for the end token).
    """
    if bool(targets) == (input_file is not None):
        raise typer.BadParameter("give either TARGET or --input")
    numbered = [(0, target) for target in targets or ()] if input_file is None else lines(input_file)
    given = [target for _, target in numbered]
    connection: Connection = context.obj
    with connection.client() as client:
        info = client.model(model, version)
        if info.value_size:
            raise typer.BadParameter(f"{model} outputs numbers, but only tokens can be scored", param_hint="MODEL")
        # texts for subword models are split by the server
        split: list[Source] = [one if info.tokenizer == "subword" else tokens_of(info, one) for one in given]
        try:
            found = client.score(
                model,
                split,
                source_of(info, source),
                version=info.version,
                variant=variant,
                prompt=prompt or None,
                constants=constants_of(info, constant),
                with_end=end,
            )
        except InvalidArgumentError as error:
            refused = _TARGET.match(error.field)
            if refused is None or input_file is None:
                raise
            raise LineError(named(input_file), numbered[int(refused[1])][0], error) from None
    if as_json:
        for target, tokens, one in zip(given, split, found, strict=True):
            print_json(
                {
                    "target": target,
                    "tokens": [] if isinstance(tokens, str) else tokens,
                    "log_probability": one.log_probability,
                    "log_probabilities": one.log_probabilities,
                }
            )
        return
    rows = [
        (
            f"{one.log_probability:.4f}",
            "".join(map(visible, target)) if info.tokenizer == "characters" else target,
            " ".join(f"{value:.4f}" for value in one.log_probabilities),
        )
        for target, one in zip(given, found, strict=True)
    ]
    print_table(("LOG_PROBABILITY#", "TARGET", "OF_EACH_TOKEN"), rows, empty="")
