"""`carousel stream` with a file: feeds all its data to a session, and prints each step's output."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from carousel.cli import samples
from carousel.cli.failures import LineError
from carousel.cli.outputs import object_of, spelled
from carousel.cli.printing import echo, json_line, note
from carousel.cli.reading import CutOffError, InputError, named, shown, visible
from carousel.errors import InvalidArgumentError
from carousel.frames import Frames
from carousel.session import Session
from carousel.values import ModelInfo, StepOutput

_MAX_STEPS = 32
"""The most steps in one feed: outputs are printed while the next steps are fed."""
_MAX_NUMBERS = 2**18
"""The most numbers in one feed or its outputs, unless one step has more: keeps messages far below their limits."""

_TOKEN = re.compile(r"feed\.tokens\[(\d+)\]$")
"""Matches the field of a refused token."""


class Options(NamedTuple):
    """What to read, and how. kind: None to choose by the file's name. rate: the rate that a WAV file must have. pad:
    whether to fill the last step with zeros; None for yes, unless the session is kept. is_kept: whether the session may
    be fed more later. top: number of candidates to show."""

    file: Path
    kind: samples.Format | None
    rate: int | None
    pad: bool | None
    is_kept: bool
    top: int
    as_json: bool


class Feeding:
    """Feeds a file, or standard input, to a session."""

    def __init__(self, info: ModelInfo, options: Options, blocks: Iterator[Any]) -> None:
        self._info = info
        self._options = options
        self._blocks = blocks
        self._fault: CutOffError | None = None

    def run(self, session: Session) -> None:
        """Feeds all data as it arrives, and prints an output for each step. Raises CarouselError. Raises InputError,
        also if the file has no step, and, after everything is fed, if the file was cut off."""
        info = self._info
        if info.outputs and not self._options.as_json:
            note("columns: " + ", ".join(["position", *(port.name for port in info.outputs)]))
        most = max(1, min(_MAX_STEPS, _MAX_NUMBERS // max(1, info.feature_size, info.value_size)))
        top_k = None if info.transducer else min(self._options.top, len(info.target_vocabulary)) or None
        before = session.position
        blocks = self._steps() if info.feature_size else self._blocks
        parts = (steps[begin : begin + most] for steps in blocks for begin in range(0, len(steps), most))
        reads_end = info.fed_size < info.feature_size
        can_be_last = reads_end and not self._options.is_kept
        for part, is_last in _with_last(parts) if can_be_last else ((one, False) for one in parts):
            given: dict[str, Any] = {"features": part}
            if reads_end:
                given = {"features": self._named(part), "end": is_last}
            elif not info.feature_size:
                given = {"tokens": [token for _, token in part]}
            try:
                step = session.feed(**given, top_k=top_k, every_position=True)
            except InvalidArgumentError as error:
                if refused := _TOKEN.match(error.field):
                    raise LineError(named(self._options.file), int(part[int(refused[1])][0]), error) from None
                raise
            self._print(step.outputs)
        if info.transducer and not self._options.as_json:
            echo()
        if self._fault is not None:
            raise self._fault
        if session.position == before:
            raise InputError(f"{named(self._options.file)} has no complete step: nothing was fed")

    def _steps(self) -> Iterator[list[array[float]]]:
        frames, name = Frames(self._info.fed_size), named(self._options.file)
        try:
            for block in self._blocks:
                yield frames.add(block)
        except CutOffError as fault:
            self._fault = fault
        if not frames.missing:
            return
        what = f"{name}: the last step has only {len(frames)} of {frames.size} numbers"
        is_padded = not self._options.is_kept if self._options.pad is None else self._options.pad
        if not is_padded and self._options.is_kept:
            note(f"{what} and is not fed: put these numbers at the beginning of the next piece")
        elif is_padded:
            added = "1 zero is" if frames.missing == 1 else f"{frames.missing} zeros are"
            note(f"{what}: {added} added (with --no-pad, this step is left out)")
            yield frames.flush()
        else:
            note(f"{what} and is left out")

    def _named(self, steps: list[array[float]]) -> dict[str, list[array[float]]]:
        """Returns the named parts of steps, without the end flag, which the client fills in."""
        found: dict[str, list[array[float]]] = {}
        begin = 0
        for port in self._info.fed:
            found[port.name] = [step[begin : begin + port.size] for step in steps]
            begin += port.size
        return found

    def _print(self, outputs: Iterable[StepOutput]) -> None:
        if self._info.transducer and not self._options.as_json:
            echo(spelled(*outputs), nl=False)
            return
        if lines := [json_line(object_of(one)) if self._options.as_json else self._text(one) for one in outputs]:
            echo("\n".join(lines))

    def _text(self, output: StepOutput) -> str:
        cells: Sequence[str]
        if output.tokens:
            cells = [
                cell
                for token in output.tokens
                for cell in (visible(token.text), f"{math.exp(token.log_probability or 0.0):.4f}")
            ]
        else:
            cells = [shown(part) for part in output.outputs.values()] or [shown(output.values)]
        return "\t".join([str(output.position), *cells])


def _with_last(parts: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Yields each part, and whether it is the last. Each part is held until the next one has arrived."""
    before: Any = None
    for part in parts:
        if before is not None:
            yield before, False
        before = part
    if before is not None:
        yield before, True


@contextmanager
def feeding(info: ModelInfo, options: Options) -> Iterator[Feeding]:
    """Opens a file for `Feeding`. Raises InputError if its beginning shows that the model cannot read it."""
    if info.feature_size:
        with samples.numbers(options.file, info, options.kind, options.rate) as numbers:
            yield Feeding(info, options, numbers)
        return
    if options.kind is not None or options.rate is not None or options.pad is not None:
        raise InputError(
            f"--format, --rate, --pad and --no-pad are for samples, and {info.model} reads tokens: leave them out"
        )
    with samples.tokens(options.file, info) as tokens:
        yield Feeding(info, options, tokens)
