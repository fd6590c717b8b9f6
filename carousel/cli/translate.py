"""`carousel translate`."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from carousel.cli import failures
from carousel.cli.connection import Connection
from carousel.cli.failures import LineError
from carousel.cli.printing import AsJson, echo, naming_output, print_json
from carousel.cli.reading import InputError, named
from carousel.decoding_options import DecodingOptions
from carousel.errors import CarouselError
from carousel.values import GeneratedSequence, ModelInfo

MODEL = "translate-en-de"
_STANDARD_INPUT = Path("-")


def translate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model that reads text and outputs tokens.")] = MODEL,
    input_file: Annotated[
        Path,
        typer.Option("--input", "-i", allow_dash=True, help="File to translate, line by line; - for standard input."),
    ] = _STANDARD_INPUT,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Continue after a refused line.")] = False,
    version: Annotated[int, typer.Option(min=0, help="Version of the model; 0: the newest.")] = 0,
    variant: Annotated[str, typer.Option(help="Variant of the model, such as int8.")] = "",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, show_default="the model's", help="The most tokens of a translation.")
    ] = None,
    beam_size: Annotated[
        int | None, typer.Option(min=1, help="Search for the likeliest translation with so many beams.")
    ] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="With --beam-size: higher values prefer longer translations (default: 1).")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Lines that the server works on at once.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Translates standard input, or a file, line by line on one stream, and prints the translations in order.

    A refused line is reported and ends the command; with --keep-going its output line is empty, the command continues,
    and the exit code is that of the first refused line. Empty lines stay empty. With --json an object for each line
    that is not empty: source, line, text, tokens, finish_reason.
    """
    if length_penalty is not None and beam_size is None:
        raise typer.BadParameter("--length-penalty needs --beam-size")
    given = {"max_tokens": max_tokens, "beam_size": beam_size, "length_penalty": length_penalty}
    decoding: DecodingOptions = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]
    connection: Connection = context.obj
    lines = _Lines(input_file, as_json=as_json)
    code = 0
    with connection.client() as client:
        info = client.model(model, version)
        if not info.has_encoder or info.source_feature_size or info.value_size:
            raise typer.BadParameter(
                f"{info.model} cannot translate: expected a model that reads text and outputs tokens",
                param_hint="MODEL",
            )
        for result in client.generate_many(
            info.model, lines.sources(), version=version, variant=variant, concurrency=concurrency, **decoding
        ):
            error = result.error
            if error is not None:
                cause = connection.explained(error) if isinstance(error, CarouselError) else error
                failed = LineError(named(input_file), lines.number, cause)
                refused = failures.passed_over(failed, keep_going=keep_going)
                code = code or refused
            lines.print(result, info)
    if code:
        raise typer.Exit(code)


class _Lines:
    """The lines of a file, which one thread reads as they arrive, and the output lines, which are printed in order.

    An empty line is printed when it is read, if all lines before it are printed: its output does not wait for more
    input.
    """

    def __init__(self, path: Path, *, as_json: bool) -> None:
        self._path = path
        self._as_json = as_json
        self._unprinted: deque[tuple[int, bool]] = deque()
        """The number of each line that was read and not yet printed, and whether it is empty. The first is not
        empty."""
        self._lock = threading.Lock()
        """Held while a line is printed."""

    @property
    def number(self) -> int:
        """The number of the line that is printed next, from 1."""
        return self._unprinted[0][0]

    def sources(self) -> Iterator[str]:
        """Yields the lines that are not empty. Raises InputError."""
        for number, line in enumerate(self._read(), 1):
            is_empty = not line.strip()
            with self._lock:
                self._unprinted.append((number, is_empty))
                self._print_empty_ones()
            if not is_empty:
                yield line

    def _read(self) -> Iterator[str]:
        is_standard_input = str(self._path) == "-"
        if is_standard_input and sys.stdin is None:
            raise InputError("standard input is closed")
        try:
            # a separate file object: a thread that waits for `sys.stdin` would keep the process from ending
            with open(
                sys.stdin.fileno() if is_standard_input else self._path, "rb", closefd=not is_standard_input
            ) as file:
                for number, data in enumerate(file):
                    yield data.decode("utf-8" if number else "utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{named(self._path)} is not UTF-8 text: {error.reason}") from None
        except OSError as error:
            raise InputError(f"{named(self._path)} cannot be read: {error.strerror or error}") from None

    def print(self, result: GeneratedSequence, info: ModelInfo) -> None:
        """Prints the next line, which is empty for a refused source, and the empty lines after it."""
        tokens = [token.text for token in result.tokens]
        between = "" if info.tokenizer == "characters" else " "
        text = result.text if info.tokenizer == "subword" else between.join(tokens)
        with self._lock:
            number, _ = self._unprinted.popleft()
            if not self._as_json:
                echo(text.replace("\n", " "))  # one output line for each source, even if the model adds line ends
            elif result.error is None:
                found: dict[str, Any] = {"source": result.source, "line": number, "text": text, "tokens": tokens}
                print_json(found | {"finish_reason": result.finish_reason})
            sys.stdout.flush()
            self._print_empty_ones()

    def _print_empty_ones(self) -> None:
        while self._unprinted and self._unprinted[0][1]:
            self._unprinted.popleft()
            if not self._as_json:
                # not through `sys.stdout`: a thread that waits to write to it would keep the process from ending
                with naming_output():
                    os.write(sys.stdout.fileno(), b"\n")
