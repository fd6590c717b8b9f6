"""The entry point: options that all commands share, and exit codes for errors.

Exit codes: 0 done; 1 the server refused or failed; 2 the command line is wrong; 3 the server cannot be reached, or not
in time; 4 no such model or session; 5 not allowed; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from carousel._version import __version__
from carousel.cli import bench, generate, inspect, models, sessions, step, stream, watch
from carousel.cli.connection import Connection
from carousel.cli.printing import err
from carousel.cli.reading import InputError
from carousel.errors import (
    CarouselError,
    DeadlineExceededError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)

_CODES: tuple[tuple[type[CarouselError], int], ...] = (
    (UnavailableError, 3),
    (DeadlineExceededError, 3),
    (NotFoundError, 4),
    (UnauthenticatedError, 5),
    (PermissionDeniedError, 5),
)

app = typer.Typer(
    name="carousel",
    help="Talks to a Carousel server.",
    epilog="Exit codes: 0 done; 1 refused or failed; 2 wrong command line; 3 not reached, or not in time; 4 not found;"
    " 5 not allowed; 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("models")(models.list_models)
app.command("generate")(generate.generate)
app.command("stream")(stream.stream)
app.command("step")(step.step)
app.command("watch")(watch.watch)
app.command("inspect")(inspect.inspect)
app.add_typer(sessions.app, name="sessions")
app.command("bench")(bench.bench)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"carousel {__version__}")
        raise typer.Exit


@app.callback()
def connect(
    context: typer.Context,
    target: Annotated[
        str, typer.Option("--target", "-t", envvar="CAROUSEL_TARGET", help="Host and port.")
    ] = "localhost:50051",
    token: Annotated[
        str | None,
        typer.Option(envvar="CAROUSEL_TOKEN", show_default=False, help="By which the server knows you."),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File that has the token.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Use TLS, with the authorities that this machine trusts.")] = False,
    ca: Annotated[Path | None, typer.Option(help="PEM file of the authority of the server's certificate.")] = None,
    cert: Annotated[Path | None, typer.Option(help="PEM file of your own certificate.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of its private key.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds for each call.")] = 60.0,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of all commands; they go before the command's name."""
    if (cert is None) != (key is None):
        raise typer.BadParameter("--cert and --key go together")
    if token_file is not None:
        token = token_file.read_text().strip()
    context.obj = Connection(target, token, tls, ca, cert, key, timeout)


def main() -> None:
    """Runs the command line, and exits."""
    try:
        app()
    except CarouselError as error:
        _tell(error)
        sys.exit(next((code for kind, code in _CODES if isinstance(error, kind)), 1))
    except InputError as error:
        err.print("error: ", style="bold red", end="")
        err.print(str(error), markup=False)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone, and the rest is dropped
        sys.exit(1)
    except OSError as error:
        err.print(f"[red]error[/red]: {error}")
        sys.exit(2)


def _tell(error: CarouselError) -> None:
    if "--json" in sys.argv:
        failure = {"code": error.code.name, "reason": error.reason, "message": error.message, "field": error.field}
        typer.echo(json.dumps({"error": failure}), err=True)
        return
    err.print("error: ", style="bold red", end="")
    err.print(str(error), markup=False)
    if error.retry_delay is not None:
        err.print(f"try again in {error.retry_delay.total_seconds():g} s")


if __name__ == "__main__":
    main()
