"""`carousel generate`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from carousel.cli.connection import Connection
from carousel.cli.constants import Given, constants_of
from carousel.cli.printing import AsJson, print_json, progress
from carousel.cli.reading import shown, source_of
from carousel.client import Client
from carousel.values import DecodingOptions, ModelInfo


def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    source: Annotated[str | None, typer.Argument(help="What a model with an encoder reads.")] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", "-i", allow_dash=True, help="Sources, one a line; - for standard input."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What to consume first: text, as the model splits it.")] = None,
    version: Annotated[int, typer.Option(min=0, help="0: the newest.")] = 0,
    variant: Annotated[str, typer.Option(help="Such as int8.")] = "",
    constant: Given = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    min_tokens: Annotated[int | None, typer.Option(min=0)] = None,
    temperature: Annotated[float | None, typer.Option(help="Samples; so do top-k, top-p and seed.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    repetition_penalty: Annotated[float | None, typer.Option()] = None,
    beam_size: Annotated[int | None, typer.Option(min=1, help="Searches for the likeliest sequences.")] = None,
    num_best: Annotated[int | None, typer.Option(min=1, help="How many of them to print.")] = None,
    as_json: AsJson = False,
) -> None:
    """Generates a sequence, or one for each line of a file; tokens are printed as they come.

    With --json one object a sequence: source, tokens, finish_reason, and hypotheses of a search.
    """
    if source is not None and input_file is not None:
        raise typer.BadParameter("give SOURCE or --input, not both")
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "repetition_penalty": repetition_penalty,
        "beam_size": beam_size,
        "num_best": num_best,
    }
    decoding: DecodingOptions = {name: value for name, value in options.items() if value is not None}  # type: ignore[assignment]
    sources: list[str | None] = [source] if input_file is None else list(_lines(input_file))
    connection: Connection = context.obj
    bar = progress() if len(sources) > 1 and not sys.stdout.isatty() else nullcontext()
    with connection.client() as client, bar as shown:
        info = client.model(model, version)
        given = constants_of(info, constant)
        task = None if shown is None else shown.add_task("generating", total=len(sources))
        for one in sources:
            if info.value_size:
                _forecast(client, info, one, max_tokens, given, as_json=as_json)
            else:
                _one(client, info, one, prompt, variant, decoding, given, as_json=as_json)
            if shown is not None and task is not None:
                shown.advance(task)


def _lines(path: Path) -> list[str]:
    text = sys.stdin.read() if str(path) == "-" else path.read_text()
    return [line for line in text.splitlines() if line.strip()]


def _forecast(
    client: Client, info: ModelInfo, source: str | None, horizon: int | None, given: dict[str, Any], *, as_json: bool
) -> None:
    found = client.forecast(
        info.model, horizon or info.max_tokens, source_of(info, source), version=info.version, constants=given
    )
    if as_json:
        print_json({"source": source, "values": found})
        return
    for vector in found:
        typer.echo(shown(vector))


def _one(
    client: Client,
    info: ModelInfo,
    source: str | None,
    prompt: str | None,
    variant: str,
    decoding: DecodingOptions,
    given: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    between = "" if info.tokenizer == "characters" else " "
    tokens = []
    generation = client.generate(
        info.model, source, version=info.version, variant=variant, prompt=prompt or None, constants=given, **decoding
    )
    is_search = decoding.get("beam_size") is not None
    for token in generation:
        tokens.append(token.text)
        if not as_json and not is_search:
            typer.echo(("" if len(tokens) == 1 else between) + token.text, nl=False)
            sys.stdout.flush()
    if as_json:
        found: dict[str, object] = {"source": source, "tokens": tokens, "finish_reason": generation.finish_reason}
        if is_search:
            found["hypotheses"] = generation.hypotheses
        print_json(found)
        return
    if not is_search:
        typer.echo()
    for hypothesis in generation.hypotheses:
        typer.echo(f"{hypothesis.score:9.4f}  {' '.join(token.text for token in hypothesis.tokens)}")
