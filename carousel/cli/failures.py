"""Error texts of failed commands on standard error, and exit codes.

0 success; 1 the server refused or failed, or standard output cannot be written; 2 the command line, or a file, is
wrong; 3 the server cannot be reached or did not answer in time; 4 no such model or session; 5 not allowed; 130
interrupted; 141 the reader of the output is gone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.exceptions import TyperException

from carousel.cli import printing
from carousel.cli.reading import InputError
from carousel.errors import (
    CarouselError,
    DeadlineExceededError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)

REFUSED, WRONG, INTERRUPTED, CLOSED_OUTPUT = 1, 2, 130, 141
_CODES: tuple[tuple[type[CarouselError], int], ...] = (
    (UnavailableError, 3),
    (DeadlineExceededError, 3),
    (NotFoundError, 4),
    (UnauthenticatedError, 5),
    (PermissionDeniedError, 5),
)
_LONGEST = 40
"""The most letters of a text in an error."""


class LineError(Exception):
    """A line of the input failed. name: the file's. line: its number, from 1. cause: the error."""

    def __init__(self, name: str, line: int, cause: Exception) -> None:
        super().__init__(f"{name}, line {line}: {cause}")
        self.line = line
        self.cause = cause


def exit_code(error: BaseException) -> int:
    """Returns the exit code for an error."""
    if isinstance(error, LineError):
        return exit_code(error.cause)
    if isinstance(error, CarouselError):
        return next((code for kind, code in _CODES if isinstance(error, kind)), REFUSED)
    return REFUSED if _is_of_output(error) else WRONG


def passed_over(failed: LineError, *, keep_going: bool) -> int:
    """Reports a refused line and returns its exit code. Raises the error where the command ends with it: without
    keep_going, and where the next line would fail alike."""
    code = exit_code(failed)
    if not (keep_going and code in (REFUSED, WRONG)):
        raise failed from None
    print_error(failed)
    return code


def print_error(error: Exception) -> None:
    """Prints an error: a sentence, or with --json an object on one line."""
    cause = error.cause if isinstance(error, LineError) else error
    text = _text(error)
    if "--json" in sys.argv:
        found: dict[str, Any] = {"code": "INVALID_ARGUMENT", "reason": "INPUT", "message": text, "field": ""}
        if isinstance(cause, TyperException):
            found["reason"] = "USAGE"
        if _is_of_output(cause):
            found |= {"code": "DATA_LOSS", "reason": "OUTPUT"}
        if isinstance(cause, CarouselError):
            found |= {"code": cause.code.name, "reason": cause.reason, "message": cause.message, "field": cause.field}
            if cause.request_id:
                found["request_id"] = cause.request_id
            if cause.retry_delay is not None:
                found["retry_delay_s"] = cause.retry_delay.total_seconds()
        if isinstance(error, LineError):
            found["line"] = error.line
        typer.echo(printing.json_line({"error": found}), err=True)
        return
    if text:
        printing.error(text)
    if isinstance(cause, TyperException) and (context := getattr(cause, "ctx", None)) and text:
        printing.note(f"see {context.command_path} --help")
    if isinstance(cause, CarouselError) and cause.retry_delay is not None:
        printing.note(f"try again in {cause.retry_delay.total_seconds():g} s")


def ended(command: Callable[[], int | None]) -> int:
    """Runs a command line to its end, prints its error if it fails, and returns the exit code."""
    try:
        if code := command():
            return code
        with printing.naming_output():
            sys.stdout.flush()
    except BrokenPipeError:
        leave_output()
        return CLOSED_OUTPUT
    except (CarouselError, InputError, LineError, TyperException, OSError, UnicodeEncodeError) as error:
        print_error(error)
        return exit_code(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return 0


def leave_output() -> None:
    """Drops the rest of the output, because its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_of_output(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.filename == printing.OUTPUT


def _text(error: Exception) -> str:
    if isinstance(error, TyperException):
        return error.format_message().removeprefix("Invalid value: ")
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:_LONGEST]!r} is not UTF-8 text"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
