"""`carousel stream` without a file: feeds lines as they are typed, and shows the model's predictions.

1. On a terminal, a refused line is reported, and the command asks for the next one.
2. On a pipe, a refused line ends the command. With --keep-going the command continues, and its exit code is that of the
   first refused line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import typer

from carousel.cli import failures
from carousel.cli.failures import LineError
from carousel.cli.outputs import object_of, show, spelled
from carousel.cli.printing import echo, note, print_json
from carousel.cli.reading import InputError, shown, tokens_of, vectors
from carousel.errors import CarouselError, SessionClosedError, UnavailableError
from carousel.session import Session
from carousel.values import ModelInfo, StepOutput

_HELP = """\
type tokens, separated by spaces, to feed them (for a model of characters, the line as it is; for a model of numbers,
vectors such as 1.5,2); an empty line feeds the likeliest next token, or the predicted numbers
:generate [N]   let the server choose N tokens (10)
:top K          show K candidates from now on
:back           undo the last line, as far as the server's marks reach
:where          show the position and the session's id
:help, :quit    (or the end of input)"""
_NAME = "standard input"


class Manner(NamedTuple):
    """How to answer lines. top: number of candidates to show."""

    top: int
    keep_going: bool
    as_json: bool


class _Line(NamedTuple):
    """A line that can be taken back. position, shown: the session's position and the shown output before it."""

    position: int
    shown: StepOutput | None


class Talk:
    """Feeds the lines of a person or a program to a session, and prints the answers."""

    def __init__(
        self, session: Session, info: ModelInfo, manner: Manner, reopen: Callable[[], Session] | None = None
    ) -> None:
        """reopen: opens a new session in place of this one after it was closed; None if that is not possible."""
        self._session = session
        self._info = info
        self._manner = manner
        self._reopen = reopen
        self._top = manner.top
        self._began = session.position
        self._shown: StepOutput | None = None
        self._lines: list[_Line] = []

    def run(self) -> None:
        """Answers lines up to the end of input or `:quit`. Raises CarouselError, LineError, and typer.Exit if some
        lines were refused and the others answered."""
        self._show(self._session.first)
        number = code = 0
        while (line := _ask(self._session.position)) is not None and line.strip() not in (":quit", ":q"):
            number += 1
            try:
                self._do(line)
            except (SessionClosedError, UnavailableError):
                raise
            except (CarouselError, ValueError, InputError) as error:
                refused = self._refused(error, number)
                code = code or refused
        if code:
            raise typer.Exit(code)

    def _refused(self, error: Exception, number: int) -> int:
        """Reports a refused line. Returns the exit code for it; 0 on a terminal. Raises LineError on a pipe."""
        if isinstance(error, UnicodeEncodeError):
            error = InputError("it is not UTF-8 text")
        if sys.stdin.isatty():
            failures.print_error(error)
            return 0
        failed = LineError(_NAME, number, error)
        if not self._manner.keep_going:
            raise failed from None
        failures.print_error(failed)
        return failures.exit_code(failed)

    def _do(self, line: str) -> None:
        command, *rest = line.split() or [""]
        if command == ":generate" and len(rest) < 2:
            self._generate(int(rest[0]) if rest else 10)
        elif command == ":top" and len(rest) == 1:
            self._top = int(rest[0])
        elif command == ":back" and not rest:
            self._back()
        elif command == ":where" and not rest:
            self._where()
        elif command == ":help":
            note(_HELP)
        elif command.startswith(":") and len(command) > 1:
            raise InputError(f"{line.strip()!r} is not a command: :help lists the commands")
        elif line or self._next is not None:
            self._feed(line)
        else:
            raise InputError("an empty line feeds what the model predicts, but there is no prediction: see :help")

    @property
    def _next(self) -> str | None:
        """What an empty line feeds; None if nothing."""
        if self._shown is None or not self._info.can_generate:
            return None
        if self._info.value_size:
            return shown(self._shown.values)
        return next((one.text for one in self._shown.tokens), None)

    def _where(self) -> None:
        if self._manner.as_json:
            print_json({"session_id": self._session.id, "position": self._session.position})
        else:
            echo(f"session {self._session.id}, position {self._session.position}")

    def _generate(self, count: int) -> None:
        before = _Line(self._session.position, self._shown)
        if self._info.value_size:
            values = self._session.forecast(count)
            text = "\n".join(map(shown, values))
            found: dict[str, object] = {"generated": values}
        else:
            generation = self._session.generate(max_tokens=count)
            tokens = [token.text for token in generation]
            text = generation.text or ("" if self._info.tokenizer == "characters" else " ").join(tokens)
            found = {"generated": tokens, "finish_reason": generation.finish_reason}
            found |= {"text": text} if self._info.tokenizer == "subword" else {}
        self._lines.append(before)
        self._shown = None
        if self._manner.as_json:
            print_json({"position": self._session.position, **found})
        else:
            echo(text)

    def _feed(self, line: str) -> None:
        before = _Line(self._session.position, self._shown)
        if self._info.feature_size:
            step = self._session.feed(features=vectors(line or self._next or ""), mark=True)
        else:
            tokens = tokens_of(self._info, line) or [self._next or ""]
            top_k = min(self._top, len(self._info.target_vocabulary)) or None
            step = self._session.feed(tokens, top_k=top_k, mark=True)
        self._lines.append(before)
        if self._info.transducer is None:
            self._show(step.outputs[-1])
        elif self._manner.as_json:
            print_json({"position": step.position, "tokens": step.emitted})
        else:
            echo(spelled(*step.outputs))

    def _back(self) -> None:
        if not self._lines:
            raise InputError("there is no line to undo")
        line = self._lines[-1]
        if line.position == self._began and self._reopen is not None:  # there is no mark before the first line
            self._session.close()
            self._session = self._reopen()
        else:
            self._session.rewind(line.position)
        self._lines.pop()
        self._show(line.shown)

    def _show(self, output: StepOutput | None) -> None:
        self._shown = output
        if output is None:
            return
        if self._manner.as_json:
            print_json(object_of(output))
        else:
            show(output, self._info)


def _ask(position: int) -> str | None:
    """Returns the next line; None at the end of input. Raises InputError if it is not text."""
    try:
        if not sys.stdin.isatty():
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        return input(f"{position}> ")
    except EOFError:
        echo()
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"{_NAME} is not UTF-8 text: {error.reason}") from None
