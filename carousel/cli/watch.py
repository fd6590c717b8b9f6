"""`carousel watch`: prints the events of a session that another program feeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Annotated

import typer

from carousel._tensors import Vector
from carousel.cli.connection import Connection
from carousel.cli.printing import AsJson, echo, print_json
from carousel.cli.reading import shown, visible
from carousel.values import StepOutput, Token
from carousel.watching import WatchBegun, WatchChanged, WatchClosed, WatchEvent, WatchFed, WatchGenerated

_NAMES = {
    WatchBegun: "watching",
    WatchFed: "fed",
    WatchGenerated: "generated",
    WatchChanged: "changed",
    WatchClosed: "closed",
    WatchEvent: "unknown",
}


def watch(
    context: typer.Context,
    session_id: Annotated[str, typer.Argument(help="The session's id.")],
    as_json: AsJson = False,
) -> None:
    """Prints the events of a session, whoever feeds it, until the session ends: a line an event.

    Each line has the position, the event, the tokens or numbers, and the likeliest next tokens if the feed requested
    them. With --json an object a line: event, session_id, position and the event's own fields.
    """
    connection: Connection = context.obj
    with connection.client() as client, client.watch(session_id) as events:
        for event in events:
            if as_json:
                content = {field.name: getattr(event, field.name) for field in fields(event)}
                print_json({"event": _NAMES[type(event)], **content})
            else:
                echo("\t".join([str(event.position), _NAMES[type(event)], *_words(event)]))


def _words(event: WatchEvent) -> Iterable[str]:
    """Yields the cells of an event's line."""
    match event:
        case WatchBegun():
            yield f"{event.model}/{event.version} {event.variant}, durability {event.durability}"
        case WatchFed():
            yield _items(event.tokens, event.features)
            if event.step is not None and event.step.outputs:
                yield f"next: {_next(event.step.outputs[-1])}"
        case WatchGenerated():
            yield _items(event.tokens, event.values)
            if event.finish_reason is not None:
                yield f"end: {event.finish_reason}"
        case WatchChanged():
            yield event.change
        case WatchClosed():
            yield event.reason


def _items(tokens: Iterable[Token], vectors: Iterable[Vector]) -> str:
    return " ".join(visible(token.text) for token in tokens) or " | ".join(map(shown, vectors))


def _next(output: StepOutput) -> str:
    """Returns the values, or the candidates with their probabilities."""
    if output.values:
        return shown(output.values)
    if output.logits:
        return f"{len(output.logits)} logits"
    return ", ".join(map(_candidate, output.tokens))


def _candidate(token: Token) -> str:
    if token.log_probability is None:
        return visible(token.text)
    return f"{visible(token.text)} {math.exp(token.log_probability):.2%}"
