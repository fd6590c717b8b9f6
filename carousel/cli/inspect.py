"""`carousel inspect`: shows gates, states and attention inside each step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carousel.cli.attention import Attention, drawn, shades_in
from carousel.cli.connection import Connection
from carousel.cli.constants import Given, constants_of
from carousel.cli.printing import AsJson, echo, note, print_json, terminal_width
from carousel.cli.reading import table, tokens_of, vectors_of, visible
from carousel.client import Client
from carousel.session import Session
from carousel.values import ModelInfo, StepOutput

if TYPE_CHECKING:
    from carousel.cli.look import Look

_START = "start"
_SUFFIXES = (".png", ".html", ".htm")
_LONGEST_LINE = 100
"""The width in columns of the printed attention if there is no terminal."""


def inspect(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    text: Annotated[
        str | None,
        typer.Argument(
            help="The source of a model with an encoder; for other models, what to feed. Numbers: `1.5,2 1.6,3`."
        ),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="File for a model of numbers: CSV, a step a line, or a NumPy array, .npy.")
    ] = None,
    feed: Annotated[
        str | None, typer.Option("--feed", help="Tokens to feed after the source. Default: what the model generates.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="The most steps to generate after a source.")] = 32,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            "-o",
            allow_dash=True,
            help="Picture to write: .png, or .html; - for text. Default: MODEL.png.",
        ),
    ] = None,
    version: Annotated[int, typer.Option(min=0, help="Version of the model; 0: the newest.")] = 0,
    constant: Given = None,
    as_json: AsJson = False,
) -> None:
    """Draws what each step does inside: gates, states and attention, as heat maps over tokens.

    `--to -` prints only the attention, as text. With --json the numbers are printed instead: steps, told, source, and
    traces by name, a row a step.
    """
    if (text is None) == (features is None):
        raise typer.BadParameter("give either TEXT or --features")
    if as_json and to is not None and str(to) != "-":
        raise typer.BadParameter("--json writes no picture: give either --json or --to")
    path = to or Path(f"{model}.png")
    is_text = str(path) == "-" and not as_json
    if not (as_json or is_text or path.suffix.lower() in _SUFFIXES):
        raise typer.BadParameter(f"{path} must end with one of {', '.join(_SUFFIXES)}, or be -", param_hint="--to")
    connection: Connection = context.obj
    with connection.client() as client:
        info = client.model(model, version)
        if not info.trace:
            raise typer.BadParameter(f"{model} has no trace: export it again to look inside", param_hint="MODEL")
        if feed is not None and (info.feature_size or not info.has_encoder):
            raise typer.BadParameter(f"--feed is for tokens after a source: {model} does not read both")
        if is_text and not any(map(_is_attention, info.trace)):
            raise typer.BadParameter(f"{model} has no attention: write a .png or .html file", param_hint="--to")
        read = table(features)
        if text is not None and (info.source_feature_size if info.has_encoder else info.feature_size):
            read, text = vectors_of(info, text, "TEXT"), None
        look = _look(client, info, text, read, feed, steps, constants_of(info, constant))
    if not look.steps:
        raise typer.BadParameter(f"there is no step to show: give {model} at least one")
    if as_json:
        traces = {name: values.tolist() for name, values in look.traces.items()}
        print_json({"steps": look.steps, "told": look.predictions, "source": look.source, "traces": traces})
        return
    if is_text:
        _print_attention(look, info)
        return
    from carousel.cli.drawing import draw  # noqa: PLC0415  # importing matplotlib is slow

    try:
        draw(look, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    note(f"wrote {path}: {len(look.steps)} steps, {len(look.traces)} traces")


def _look(  # the values of the command's options
    client: Client,
    info: ModelInfo,
    text: str | None,
    features: list[list[float]] | None,
    feed: str | None,
    steps: int,
    given: dict[str, Any],
) -> Look:
    """Feeds a session and gathers its outputs."""
    source = None
    if info.has_encoder:
        source = text if features is None else features
    has_start = info.has_encoder
    with client.session(
        info.model,
        source,
        version=info.version,
        constants=given,
        first=has_start,
        trace=has_start,
        on_disconnect="free",
    ) as session:
        outputs = [] if session.first is None else [session.first]
        if info.feature_size:
            vectors = features if not info.has_encoder else _forecast(client, info, features, steps, given)
            labels = [_number(vector) for vector in vectors or ()]
            outputs += session.feed(features=vectors, every_position=True, trace=True).outputs if vectors else ()
        else:
            tokens = _tokens(client, info, text or "", feed, steps, given)
            labels = list(tokens)
            outputs += _feed(session, info, tokens) if tokens else ()
        read = [token.text for token in session.source] or [_number(vector) for vector in features or ()]
    return _gather(info, [_START] * (len(outputs) - len(labels)) + labels, outputs, read if info.has_encoder else [])


def _tokens(
    client: Client, info: ModelInfo, text: str, feed: str | None, steps: int, given: dict[str, Any]
) -> list[str]:
    """Returns the tokens to feed, by name."""
    fed = feed if info.has_encoder else text
    if fed is not None:
        return tokens_of(info, fed)
    generation = client.generate(info.model, text, version=info.version, constants=given, max_tokens=steps)
    return [token.text for token in generation]


def _forecast(
    client: Client, info: ModelInfo, features: list[list[float]] | None, steps: int, given: dict[str, Any]
) -> list[tuple[float, ...]]:
    if not info.can_generate:
        return []
    return client.forecast(info.model, steps, features, version=info.version, constants=given)


def _feed(session: Session, info: ModelInfo, tokens: Sequence[str]) -> tuple[StepOutput, ...]:
    return session.feed(list(tokens), every_position=True, trace=True).outputs


def _gather(info: ModelInfo, steps: list[str], outputs: Sequence[StepOutput], source: list[str]) -> Look:
    import numpy as np  # noqa: PLC0415  # installed with matplotlib

    from carousel.cli.look import Look  # noqa: PLC0415  # as above

    predictions = [" ".join(token.text for token in output.tokens) or _number(output.values) for output in outputs]
    traces = {name: np.array([output.trace[name] for output in outputs], np.float32) for name in info.trace}
    return Look(f"{info.model}/{info.version}", steps, predictions, source, traces)


def _print_attention(look: Look, info: ModelInfo) -> None:
    """Prints where each attention looked before each token; for subwords, before each word."""
    for name, weights in look.traces.items():
        if not _is_attention(name):
            continue
        if info.tokenizer == "subword":
            attention = Attention(look.source, look.predictions, weights.tolist()).of_words()
        else:
            attention = Attention([*map(visible, look.source)], [*map(visible, look.predictions)], weights.tolist())
        shades = shades_in(sys.stdout.encoding)
        echo("\n".join(drawn(attention, width=terminal_width() or _LONGEST_LINE, shades=shades)))


def _is_attention(name: str) -> bool:
    return name.startswith("attention")


def _number(vector: Sequence[float]) -> str:
    shown = [f"{value:.4g}" for value in vector[:3]]
    return ",".join(shown) + ("…" if len(vector) > 3 else "")
