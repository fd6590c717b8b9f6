"""`carousel stream`: a session by hand."""

from __future__ import annotations

import math
import sys
from typing import Annotated

import typer

from carousel._requests import Source
from carousel.cli.connection import Connection
from carousel.cli.printing import err, print_table
from carousel.cli.reading import shown, source_of, tokens_of, vectors, visible
from carousel.client import Client
from carousel.errors import CarouselError, InvalidArgumentError, SessionClosedError, UnavailableError
from carousel.session import Session
from carousel.values import ModelInfo, StepOutput

_HELP = """\
type tokens, between spaces, to feed them (of a model of characters, the line as it is; of a model of numbers, vectors
such as 1.5,2); an empty line feeds what the model says comes next
:generate [N]   let the server choose N tokens (10)
:top K          show K candidates from here on
:back           take the last line back, as far as the server's marks go
:where          tell the position and the session's id
:help, :quit    (or the end of input)"""


def stream(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    source: Annotated[str | None, typer.Argument(help="What a model with an encoder reads.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Candidates to show.")] = 5,
    session_id: Annotated[str, typer.Option("--id", help="The session's id.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the session of that id.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Let the session outlive this command.")] = False,
    version: Annotated[int, typer.Option(min=0, help="0: the newest.")] = 0,
    variant: Annotated[str, typer.Option(help="Such as int8.")] = "",
) -> None:
    """Opens a session and feeds it what is typed, token by token, showing what the model expects next.

    Standard input that is no terminal is read line by line, as if it were typed.
    """
    if resume and not session_id:
        raise typer.BadParameter("--resume needs --id")
    connection: Connection = context.obj
    with connection.client() as client:
        if resume:
            session = client.resume(session_id)
            info = client.model(session.model, session.version)
        else:
            info = client.model(model, version)
            options = {"version": version, "variant": variant, "session_id": session_id}
            session = _open(client, info, source_of(info, source), top, "keep" if keep else "hold", options)
        talk = _Talk(session, info, top)
        if session.first is not None:
            talk.show(session.first)
        try:
            while talk.take(_ask(session.position)):
                pass
        finally:
            if not keep:
                session.close()
    if keep:
        err.print(f"kept: carousel stream {model} --id {session.id} --resume", markup=False)


def _open(  # what is asked for
    client: Client, info: ModelInfo, source: Source | None, top: int, on_disconnect: str, options: dict[str, object]
) -> Session:
    """Opens a session that returns what may come first, if its model has a start token."""
    top_k = min(top, len(info.target_vocabulary)) or None
    try:
        return client.session(
            info.model,
            source,
            first=True,
            top_k=top_k,
            on_disconnect=on_disconnect,
            **options,  # type: ignore[arg-type]
        )
    except InvalidArgumentError as error:
        if error.field != "open.outputs":
            raise
        return client.session(info.model, source, on_disconnect=on_disconnect, **options)  # type: ignore[arg-type]


class _Talk:
    """The dialogue of a person with a session."""

    def __init__(self, session: Session, info: ModelInfo, top: int) -> None:
        self._session = session
        self._info = info
        self._top = top
        self._next: str | None = None
        self._before: list[int] = []

    def show(self, output: StepOutput) -> None:
        """Shows what may come next."""
        if self._info.value_size:
            self._next = shown(output.values) if self._info.can_generate else None
            typer.echo(shown(output.values))
            return
        tokens = output.tokens
        self._next = tokens[0].text if tokens and self._info.can_generate else None
        shares = [math.exp(token.log_probability or 0.0) for token in tokens]
        rows = [
            (visible(token.text), f"{share:.2%}", "█" * round(share * 40))
            for token, share in zip(tokens, shares, strict=True)
        ]
        print_table(("NEXT", "PROBABILITY#", ""), rows, empty="")

    def take(self, line: str | None) -> bool:
        """Does what a line says. Returns whether to go on."""
        if line is None or line.strip() in (":quit", ":q"):
            return False
        try:
            self._do(line)
        except (SessionClosedError, UnavailableError):
            raise
        except (CarouselError, ValueError) as error:
            err.print(str(error), style="red", markup=False)
        return True

    def _do(self, line: str) -> None:
        command, *rest = line.split() or [""]
        if command == ":generate":
            self._generate(int(rest[0]) if rest else 10)
        elif command == ":top" and rest:
            self._top = int(rest[0])
        elif command == ":back":
            self._back()
        elif command == ":where":
            typer.echo(f"session {self._session.id}, position {self._session.position}")
        elif command.startswith(":") or not (line or self._next):
            err.print(_HELP, markup=False)
        else:
            self._feed(line)

    def _generate(self, count: int) -> None:
        if self._info.value_size:
            for vector in self._session.forecast(count):
                typer.echo(shown(vector))
        else:
            between = "" if self._info.tokenizer == "characters" else " "
            typer.echo(between.join(token.text for token in self._session.generate(max_tokens=count)))
        self._before.clear()

    def _feed(self, line: str) -> None:
        before = self._session.position
        if self._info.feature_size:
            step = self._session.feed(features=vectors(line or self._next or ""), mark=True)
        else:
            tokens = tokens_of(self._info, line) or [self._next or ""]
            top_k = min(self._top, len(self._info.target_vocabulary)) or None
            step = self._session.feed(tokens, top_k=top_k, mark=True)
        self._before.append(before)
        self.show(step.outputs[-1])

    def _back(self) -> None:
        if len(self._before) < 2:
            err.print("there is nothing to take back")
            return
        self._session.rewind(self._before.pop())
        self._next = None


def _ask(position: int) -> str | None:
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    try:
        return input(f"{position}> ")
    except EOFError:
        typer.echo()
        return None
