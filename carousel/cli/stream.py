"""`carousel stream`: one session, fed from a file, a pipe or the keyboard."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from carousel._requests import Source
from carousel.cli.connection import Connection
from carousel.cli.constants import Given, constants_of
from carousel.cli.failures import LineError
from carousel.cli.feeding import Feeding, Options, feeding
from carousel.cli.printing import AsJson, note
from carousel.cli.reading import CutOffError, InputError, source_of
from carousel.cli.samples import Format
from carousel.cli.talking import Manner, Talk
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
from carousel.values import ModelInfo

_TOP = 5
"""Number of candidates shown for typed lines."""


def stream(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    source: Annotated[
        str | None,
        typer.Argument(
            help="Source of a model with an encoder. For other models, the file to feed: samples as WAV, CSV or a NumPy"
            " array; for a model of tokens, a text. - for standard input."
        ),
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", "-i", allow_dash=True, help="File to feed, for a model with an encoder."),
    ] = None,
    samples: Annotated[
        Format | None,
        typer.Option(
            "--format", help="Format of the samples. Default: by the file's name. Raw samples have one channel."
        ),
    ] = None,
    rate: Annotated[int | None, typer.Option(min=1, help="Samples per second that a WAV file must have.")] = None,
    pad: Annotated[
        bool | None,
        typer.Option(
            "--pad/--no-pad",
            help="Fill an incomplete last step with zeros, or leave it out.",
            show_default="--pad; with --keep, --no-pad",
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, show_default="5; for a file, 1", help="Candidates to show.")] = None,
    session_id: Annotated[str, typer.Option("--id", help="The session's id.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Resume the session with that id.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the session after this command; continue it with --resume.")
    ] = False,
    version: Annotated[int, typer.Option(min=0, help="Version of the model; 0: the newest.")] = 0,
    variant: Annotated[str, typer.Option(help="Variant of the model, such as int8.")] = "",
    constant: Given = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Continue after a refused line from a pipe.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Feeds a session from a file, a pipe or the keyboard, and prints each step's output.

    With a file, or - for standard input, the command feeds all its data as it arrives. For each step it prints a line:
    the position and the values, or the likeliest tokens and their probabilities, separated by tabs. With --json, an
    object a line: position, and values, outputs by name, or tokens. At the end of the file the session is closed,
    unless --keep is given.

    Without a file, the command feeds each typed line, and shows the likeliest next tokens; :help lists the commands
    that a line may have. Standard input that is not a terminal is read line by line in the same way. A refused line is
    reported and ends the command; with --keep-going, the command continues with the next line.
    """
    if resume and not session_id:
        raise typer.BadParameter("--resume needs --id")
    if resume and constant:
        raise typer.BadParameter("--constant cannot be used with --resume: the session keeps its constants")
    connection: Connection = context.obj
    with connection.client() as client, ExitStack() as files:
        session = client.resume(session_id) if resume else None
        if session is not None and (session.model, version or session.version) != (model, session.version):
            raise typer.BadParameter(f"session {session_id} is of {session.model}/{session.version}: give that model")
        info = client.model(model, version) if session is None else client.model(session.model, session.version)
        file, source = _file(info, source, input_file)
        _check(file, samples=(samples, rate, pad), keep_going=keep_going)
        fed: Feeding | None = None
        if file is not None:
            fed = files.enter_context(feeding(info, Options(file, samples, rate, pad, keep, top or 1, as_json)))
        reopen: Callable[[], Session] | None = None
        if session is None:
            opening = _Opening(client, info, source_of(info, source), None if fed else top or _TOP)
            options: dict[str, Any] = {
                "version": version,
                "variant": variant,
                "on_disconnect": "keep" if keep else "hold",
                "constants": constants_of(info, constant),
            }
            session = opening.session(session_id, options)
            opened_id = session.id

            def reopen() -> Session:
                nonlocal session
                session = opening.session(opened_id, options)
                return session

        began, is_left = session.position, False
        try:
            if fed is None:
                Talk(session, info, Manner(top or _TOP, keep_going, as_json), reopen).run()
            else:
                fed.run(session)
            is_left = keep
        except BaseException as error:
            is_left = _is_left(error, session.position > began, is_resumed=resume, is_kept=keep)
            raise
        finally:
            if is_left:
                note(f"kept: carousel stream {model} --id {session.id} --resume")
            else:
                session.close()


def _check(file: Path | None, *, samples: tuple[object, ...], keep_going: bool) -> None:
    """Raises typer.BadParameter for options that need a file, or that need typed lines."""
    if file is None and any(one is not None for one in samples):
        raise typer.BadParameter("--format, --rate, --pad and --no-pad need a file")
    if file is not None and keep_going:
        raise typer.BadParameter("--keep-going is for typed lines, not for a file")


def _is_left(error: BaseException, is_fed: bool, *, is_resumed: bool, is_kept: bool) -> bool:
    """Whether a session stays open when the command fails. is_fed: whether the command has fed it anything.

    A session that this command opened and never fed is closed: its id would be in use when the user runs the corrected
    command.
    """
    if isinstance(error, LineError):
        error = error.cause
    if isinstance(error, typer.Exit):
        return is_kept  # refused lines were reported, and all others were fed
    if isinstance(error, SessionClosedError | NotFoundError) or (isinstance(error, CutOffError) and not is_kept):
        return False  # the session has ended, or everything was fed
    is_unsure = isinstance(error, UnavailableError | DeadlineExceededError)  # the feed may have been applied
    if is_kept:
        return is_resumed or is_fed or is_unsure
    return is_resumed and isinstance(error, InputError | CarouselError)  # the input was wrong, not the session


def _file(info: ModelInfo, source: str | None, input_file: Path | None) -> tuple[Path | None, str | None]:
    """Returns the file to feed, and the source. For a model without an encoder, the argument SOURCE is the file."""
    if info.has_encoder or source is None:
        return input_file, source
    if input_file is not None:
        raise typer.BadParameter(f"{info.model} has no encoder: give SOURCE or --input, not both")
    return Path(source), None


class _Opening(NamedTuple):
    """How to open the session. top: number of candidates for the first token, if the model has a start token; None to
    request none."""

    client: Client
    info: ModelInfo
    source: Source | None
    top: int | None

    def session(self, session_id: str, options: dict[str, Any]) -> Session:
        """Opens a session. Raises CarouselError."""
        model, source = self.info.model, self.source
        if self.top is None or self.info.transducer is not None:
            return self.client.session(model, source, session_id=session_id, **options)
        top_k = min(self.top, len(self.info.target_vocabulary)) or None
        try:
            return self.client.session(model, source, session_id=session_id, first=True, top_k=top_k, **options)
        except InvalidArgumentError as error:
            if error.field != "open.outputs":
                raise
            return self.client.session(model, source, session_id=session_id, **options)
