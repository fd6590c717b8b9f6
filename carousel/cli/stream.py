"""`carousel stream`: a session by hand."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from carousel._requests import Source
from carousel.cli.connection import Connection
from carousel.cli.constants import Given, constants_of
from carousel.cli.feeding import Feeding, Options, feeding, spelled
from carousel.cli.outputs import show
from carousel.cli.printing import AsJson, err
from carousel.cli.reading import CutOffError, InputError, shown, source_of, tokens_of, vectors
from carousel.cli.samples import Format
from carousel.client import Client
from carousel.errors import (
    CarouselError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    SessionClosedError,
    UnavailableError,
)
from carousel.session import Session
from carousel.values import ModelInfo, StepOutput

_TOP = 5
"""Candidates that are shown of what is typed."""
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
    source: Annotated[
        str | None,
        typer.Argument(
            help="What a model with an encoder reads. For others the file to feed: samples, as WAV, CSV or NumPy's"
            " array; of models of tokens, a text. - for standard input."
        ),
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", "-i", allow_dash=True, help="The file to feed; a model with an encoder takes it so."),
    ] = None,
    samples: Annotated[
        Format | None,
        typer.Option("--format", help="Of the samples. Default: by the file's name. Raw ones have one channel."),
    ] = None,
    rate: Annotated[int | None, typer.Option(min=1, help="Samples a second that a WAV file must have.")] = None,
    pad: Annotated[
        bool | None,
        typer.Option(
            "--pad/--no-pad",
            help="Fill the last step with zeros, or leave it out, where the file does not fill it.",
            show_default="--pad; with --keep, --no-pad",
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, show_default="5; of a file, 1", help="Candidates to show.")] = None,
    session_id: Annotated[str, typer.Option("--id", help="The session's id.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the session of that id.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Let the session outlive this command, and go on with --resume.")
    ] = False,
    version: Annotated[int, typer.Option(min=0, help="0: the newest.")] = 0,
    variant: Annotated[str, typer.Option(help="Such as int8.")] = "",
    constant: Given = None,
    as_json: AsJson = False,
) -> None:
    """Feeds a session a file or a pipe, such as audio, CSV or text, or what is typed, and prints each step's output.

    With a file, or - for standard input, everything that it has is fed as it comes, and each step's output is a line:
    the position and the values, or the likeliest tokens and their probabilities, between tabs. With --json, an object a
    line: position, and values, outputs by name, or tokens. The end of the file is the end of the session, unless
    --keep is given.

    Without a file, each line that is typed is fed, and the command shows what the model expects next. Standard input
    that is no terminal is read line by line, as if it were typed.
    """
    if resume and not session_id:
        raise typer.BadParameter("--resume needs --id")
    if resume and constant:
        raise typer.BadParameter("--constant goes with a session that is opened: the one that is resumed has its own")
    connection: Connection = context.obj
    with connection.client() as client, ExitStack() as files:
        session = client.resume(session_id) if resume else None
        info = client.model(model, version) if session is None else client.model(session.model, session.version)
        file, source = _file(info, source, input_file)
        fed: Feeding | None = None
        if file is not None:
            fed = files.enter_context(feeding(info, Options(file, samples, rate, pad, keep, top or 1, as_json)))
        elif samples is not None or rate is not None or pad is not None or as_json:
            raise typer.BadParameter("--format, --rate, --pad, --no-pad and --json go with a file")
        if session is None:
            options = {
                "version": version,
                "variant": variant,
                "session_id": session_id,
                "on_disconnect": "keep" if keep else "hold",
                "constants": constants_of(info, constant),
            }
            session = _open(client, info, source_of(info, source), None if fed else top or _TOP, options)
        began, is_left = session.position, False
        try:
            if fed is None:
                _talk(session, info, top or _TOP)
            else:
                fed.run(session)
            is_left = keep
        except BaseException as error:
            is_left = _is_left(error, session.position > began, is_resumed=resume, is_kept=keep)
            raise
        finally:
            if is_left:
                err.print(f"kept: carousel stream {model} --id {session.id} --resume", markup=False)
            else:
                session.close()


def _is_left(error: BaseException, is_fed: bool, *, is_resumed: bool, is_kept: bool) -> bool:
    """Whether a session stays open when the command fails. is_fed: whether the command has fed it anything.

    A session that this command opened and never fed would be in the way of the corrected command.
    """
    if isinstance(error, SessionClosedError | NotFoundError) or (isinstance(error, CutOffError) and not is_kept):
        return False  # it is gone, or was fed everything
    is_unsure = isinstance(error, UnavailableError | DeadlineExceededError)  # the feed may have been applied
    if is_kept:
        return is_resumed or is_fed or is_unsure
    return is_resumed and isinstance(error, InputError | CarouselError)  # the file is wrong, not the session


def _file(info: ModelInfo, source: str | None, input_file: Path | None) -> tuple[Path | None, str | None]:
    """The file to feed, and the source: what a model without an encoder is given is the file."""
    if info.has_encoder or source is None:
        return input_file, source
    if input_file is not None:
        raise typer.BadParameter(f"{info.model} has no encoder: give SOURCE or --input, not both")
    return Path(source), None


def _talk(session: Session, info: ModelInfo, top: int) -> None:
    talk = _Talk(session, info, top)
    if session.first is not None:
        talk.show(session.first)
    while talk.take(_ask(session.position)):
        pass


def _open(  # what is asked for
    client: Client, info: ModelInfo, source: Source | None, top: int | None, options: dict[str, Any]
) -> Session:
    """Opens a session. top: candidates of what may come first, if its model has a start token; None: of nothing."""
    if top is None:
        return client.session(info.model, source, **options)
    top_k = min(top, len(info.target_vocabulary)) or None
    try:
        return client.session(info.model, source, first=True, top_k=top_k, **options)
    except InvalidArgumentError as error:
        if error.field != "open.outputs":
            raise
        return client.session(info.model, source, **options)


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
        self._next = None
        if self._info.can_generate:
            self._next = (
                shown(output.values) if self._info.value_size else next((one.text for one in output.tokens), None)
            )
        show(output, self._info)

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
        if self._info.transducer:
            typer.echo("".join(map(spelled, step.outputs)))
        else:
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
