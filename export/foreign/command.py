"""`python -m export onnx`: its flags to what `writing` wants, and what was found to people."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from export.errors import ExportError
from export.foreign.axes import Hints
from export.foreign.initial import initial_values
from export.foreign.reading import Reading
from export.foreign.session_constants import SessionConstant
from export.foreign.writing import Described, write_onnx
from export.vocabulary import Vocabulary
from service.repository.manifest import SpecialTokens


def run(parsed: argparse.Namespace) -> Path:
    """Writes the bundle and returns its folder. Raises as `writing.write_onnx` does."""
    hints = Hints(
        states=_once(parsed.state, "--state"),
        constants=_once(parsed.constant, "--constant"),
        axes=_once(parsed.axis, "--axis"),
        batch_axes=_once(parsed.batch_axis, "--batch-axis"),
        inputs=parsed.input,
        outputs=parsed.output,
        windows=_once(parsed.window, "--window"),
        start=parsed.start,
        end=parsed.end,
        session_constants=_all(parsed.session_constant),
        session_id=parsed.session_id,
        initial={name: initial_values(text) for name, text in _once(parsed.initial, "--initial").items()},
        force_state=parsed.force_state,
        expose_state=parsed.expose_state,
    )
    described = Described(
        vocabulary=_vocabulary(parsed.vocabulary, parsed.tokenizer),
        labels=_vocabulary(parsed.labels, "whitespace"),
        feeds_back=parsed.feeds_back,
        special_tokens=SpecialTokens(bos_id=parsed.bos, eos_id=parsed.eos),
    )
    print(f"reading {parsed.file} and running it ...", flush=True)
    written = write_onnx(
        parsed.file,
        hints,
        described,
        to=parsed.to,
        name=parsed.name,
        version=parsed.version,
        description=parsed.description or f"Made from {parsed.file.name}",
        evaluation={},
        max_tokens=parsed.max_tokens,
        max_bytes=parsed.max_bytes,
        replace=parsed.replace,
    )
    _report(written.reading, written.notes)
    return written.folder


def _once(given: list[tuple[str, Any]], flag: str) -> dict[str, Any]:
    """What is told by name. Raises ExportError for a name that is told twice."""
    names = [name for name, _ in given]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ExportError(f"{flag} names {twice[0]} twice")
    return dict(given)


def _all(given: list[tuple[str, list[float] | None]]) -> dict[str, list[list[float]]]:
    """All values that are given of each name."""
    found: dict[str, list[list[float]]] = {}
    for name, values in given:
        found.setdefault(name, []).extend([] if values is None else [values])
    return found


def _report(reading: Reading, notes: object) -> None:
    for part in reading.inputs:
        window = f", of which {part.window} are those before" if part.window else ""
        print(f"a step reads   {part.tensor}, as {list(part.shape)} of each row{window}")
    for given in reading.outputs:
        print(f"a step gives   {given.tensor}")
    for state in reading.states:
        print(f"state          {state.input} -> {state.output}, rows counted by axis {state.batch_axis}")
        if state.initial is not None:
            print(f"               begins with {state.initial.size} numbers that are given")
    for constant in reading.session_constants:
        print(f"each session   {constant.tensor}: {_kind(constant)}")
    for name, (tensor, values) in reading.constants.items():
        print(f"constant       {name} {tensor.dtype} = {', '.join(f'{value:g}' for value in values)}")
    for note in notes if isinstance(notes, list | tuple) else ():
        print(f"note           {note}")


def _kind(constant: SessionConstant) -> str:
    spec = constant.spec
    if spec.is_session_number:
        return "a number of its own"
    shown = [",".join(f"{number:g}" for number in one) for one in (spec.choices or (spec.default,))]
    if not spec.default:
        return "each opening must give it"
    return f"one of {' or '.join(shown)}" if spec.choices else f"{shown[0]:.60} unless the opening gives it"


def _vocabulary(path: Path | None, tokenizer: Literal["characters", "whitespace"]) -> Vocabulary | None:
    if path is None:
        return None
    names = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return Vocabulary(tuple(names), tokenizer)
