"""`carousel stream`: a session by hand."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from carousel.cli.connection import Connection
from carousel.cli.printing import err, print_table
from carousel.client import Client
from carousel.errors import CarouselError, InvalidArgumentError, SessionClosedError, UnavailableError
from carousel.session import Session
from carousel.values import Token

_HELP = """\
type tokens, between spaces, to feed them; an empty line feeds the likeliest one
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
        else:
            options = {"version": version, "variant": variant, "session_id": session_id}
            session = _open(client, model, source, top, "keep" if keep else "hold", options)
        talk = _Talk(session, top)
        if session.first is not None:
            talk.show(session.first.tokens)
        try:
            while talk.take(_ask(session.position)):
                pass
        finally:
            if not keep:
                session.close()
    if keep:
        err.print(f"kept: carousel stream {model} --id {session.id} --resume", markup=False)


def _open(
    client: Client, model: str, source: str | None, top: int, on_disconnect: str, options: dict[str, object]
) -> Session:
    """A session that tells what may come first, if its model has a start token to tell it by."""
    try:
        return client.session(model, source, top_k=top, on_disconnect=on_disconnect, **options)  # type: ignore[arg-type]
    except InvalidArgumentError as error:
        if error.field != "open.outputs":
            raise
        return client.session(model, source, on_disconnect=on_disconnect, **options)  # type: ignore[arg-type]


class _Talk:
    """What is typed, and what is shown."""

    def __init__(self, session: Session, top: int) -> None:
        self._session = session
        self._top = top
        self._likeliest: Token | None = None
        self._before: list[int] = []

    def show(self, tokens: Sequence[Token]) -> None:
        """Shows what may come next."""
        self._likeliest = tokens[0] if tokens else None
        shares = [math.exp(token.log_probability or 0.0) for token in tokens]
        rows = [
            (token.text, f"{share:.2%}", "█" * round(share * 40)) for token, share in zip(tokens, shares, strict=True)
        ]
        print_table(("NEXT", "PROBABILITY#", ""), rows, empty="")

    def take(self, line: str | None) -> bool:
        """Does what a line says. Returns whether to go on."""
        if line is None or line.strip() in (":quit", ":q"):
            return False
        try:
            self._do(line.split())
        except (SessionClosedError, UnavailableError):
            raise
        except (CarouselError, ValueError) as error:
            err.print(str(error), style="red", markup=False)
        return True

    def _do(self, words: list[str]) -> None:
        command, *rest = words or [""]
        if command == ":generate":
            tokens = [token.text for token in self._session.generate(max_tokens=int(rest[0]) if rest else 10)]
            typer.echo(" ".join(tokens))
            self._before.clear()
        elif command == ":top" and rest:
            self._top = int(rest[0])
        elif command == ":back":
            self._back()
        elif command == ":where":
            typer.echo(f"session {self._session.id}, position {self._session.position}")
        elif command.startswith(":") or not (words or self._likeliest):
            err.print(_HELP, markup=False)
        else:
            self._feed(words or [self._likeliest.text] if self._likeliest else words)

    def _feed(self, tokens: list[str]) -> None:
        before = self._session.position
        step = self._session.feed(tokens, top_k=self._top, mark=True)
        self._before.append(before)
        self.show(step.tokens)

    def _back(self) -> None:
        if len(self._before) < 2:
            err.print("there is nothing to take back")
            return
        self._session.rewind(self._before.pop())
        self._likeliest = None


def _ask(position: int) -> str | None:
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    try:
        return input(f"{position}> ")
    except EOFError:
        typer.echo()
        return None
