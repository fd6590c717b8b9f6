"""`carousel step`: one call of a session. The server keeps the session until the next call."""

from __future__ import annotations

from typing import Annotated

import typer

from carousel.cli.connection import Connection
from carousel.cli.constants import Given, constants_of
from carousel.cli.outputs import show, spelled
from carousel.cli.printing import AsJson, echo, note, print_json
from carousel.cli.reading import source_of, tokens_of, vectors_of
from carousel.client import Client
from carousel.errors import CarouselError
from carousel.steps import RestoredFrom, SessionStep, StepOptions
from carousel.values import ModelInfo


def step(
    context: typer.Context,
    session_id: Annotated[str, typer.Argument(help="The session's id.")],
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="[TOKENS]",
            help="What to feed: text, as the model splits it; for a model of numbers, vectors such as `1.5,2 1.6,3`.",
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Open a session of this model if none has the id.")] = "",
    source: Annotated[str | None, typer.Option(help="Source of a model with an encoder, for the opening.")] = None,
    version: Annotated[int, typer.Option(min=0, help="Version of the model; 0: the newest.")] = 0,
    variant: Annotated[str, typer.Option(help="Variant of the model, such as int8.")] = "",
    constant: Given = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the session in the store between calls, not only in memory.")
    ] = False,
    durability: Annotated[
        str | None, typer.Option(help="When the session is stored: none, checkpoint or strict.")
    ] = None,
    position: Annotated[
        int | None,
        typer.Option(min=0, show_default="where the session is", help="Feed only if the session is at this position."),
    ] = None,
    mark: Annotated[bool, typer.Option("--mark", help="Keep the state after this feed, for `rewind`.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Candidates to show.")] = 5,
    close: Annotated[bool, typer.Option("--close", help="Close the session at the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Opens or resumes a session, feeds it and closes it, as the options say, and shows the likeliest next tokens.

    Without --model the session must exist. Between two calls the server holds it for its usual time for sessions
    without a stream. With --json one object: position, outputs, session_id, model, restored_from and others.
    """
    if not model and (source is not None or version or variant or constant or keep or durability):
        raise typer.BadParameter("--source, --version, --variant, --constant, --keep and --durability need --model")
    connection: Connection = context.obj
    with connection.client() as client:
        opening: StepOptions = {}
        info: ModelInfo | None = None
        if model:
            info = client.model(model, version)
            opening = {
                "model": model,
                "source": source_of(info, source),
                "version": version,
                "variant": variant,
                "constants": constants_of(info, constant),
                "on_disconnect": "keep" if keep else "hold",
                "durability": durability,
            }
        if text is None and (position is not None or mark):
            raise typer.BadParameter("--position and --mark need TOKENS")
        answer = client.step(session_id, **opening)
        if info is None or (info.model, info.version) != (answer.model, answer.version):
            info = client.model(answer.model, answer.version)
        if text is not None:
            try:
                answer = _feed(client, answer, info, text, position, top, mark=mark, close=close)
            except Exception:
                if answer.restored_from is RestoredFrom.UNSPECIFIED:  # a refused call must leave no new session behind
                    _drop(client, answer.session_id)
                raise
        elif close:
            answer = client.step(answer.session_id, close=True)
    if as_json:
        print_json(answer)
        return
    if info.transducer and answer.outputs:
        echo(spelled(*answer.outputs))
    for output in () if info.transducer else answer.outputs[-1:]:
        show(output, info)
    state = f"closed at position {answer.position}" if answer.closed else f"at position {answer.position}"
    note(f"session {answer.session_id} of {answer.model}/{answer.version}: {state}")


def _drop(client: Client, session_id: str) -> None:
    """Closes a new session whose feed was refused. If that fails, prints a note; the refusal is still reported."""
    try:
        client.step(session_id, close=True)
    except CarouselError as error:
        note(f"session {session_id} is still open: {error}")


def _feed(  # the values of the command's options
    client: Client,
    answer: SessionStep,
    info: ModelInfo,
    text: str,
    position: int | None,
    top: int,
    *,
    mark: bool,
    close: bool,
) -> SessionStep:
    options: StepOptions = {"position": answer.position if position is None else position, "mark": mark, "close": close}
    if info.feature_size:
        options["features"] = vectors_of(info, text, "TOKENS")
        return client.step(answer.session_id, **options)
    options["top_k"] = min(top, len(info.target_vocabulary)) or None
    return client.step(answer.session_id, tokens_of(info, text), **options)
