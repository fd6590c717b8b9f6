"""`python -m export onnx`: turns flags into the arguments of `writing`, and prints what was found."""

from __future__ import annotations

import argparse
from pathlib import Path

from export.errors import ExportError
from export.folder import refuse_existing
from export.foreign import translator_command
from export.foreign.axes import Hints
from export.foreign.flags import common_options, once, token_of, vocabulary_of
from export.foreign.initial import initial_values
from export.foreign.names import split_pairs
from export.foreign.reading import Reading
from export.foreign.session_constants import SessionConstant
from export.foreign.writing import Described, write_onnx
from service.repository.manifest import SpecialTokens


def run(parsed: argparse.Namespace) -> Path:
    """Writes the bundle and returns its folder. Raises as `write_onnx` and `write_translator` do."""
    if parsed.encoder is not None:
        written = translator_command.run(parsed)
        report(written.reading, written.notes)
        return written.folder
    translator_command.refuse_without_encoder(parsed)
    hints = Hints(
        states=once(split_pairs(parsed.state, parsed.file), "--state"),
        constants=once(parsed.constant, "--constant"),
        axes=once(parsed.axis, "--axis"),
        batch_axes=once(parsed.batch_axis, "--batch-axis"),
        inputs=parsed.input,
        outputs=parsed.output,
        windows=once(parsed.window, "--window"),
        start=parsed.start,
        end=parsed.end,
        session_constants=_all(parsed.session_constant),
        session_id=parsed.session_id,
        initial={name: initial_values(text) for name, text in once(parsed.initial, "--initial").items()},
        force_state=parsed.force_state,
        expose_state=parsed.expose_state,
    )
    _check_roles(hints)
    vocabulary = vocabulary_of("--vocabulary", parsed.vocabulary, parsed.tokenizer)
    described = Described(
        vocabulary=vocabulary,
        labels=vocabulary_of("--labels", parsed.labels, "whitespace"),
        feeds_back=parsed.feeds_back,
        special_tokens=SpecialTokens(
            bos_id=token_of("--bos", parsed.bos, vocabulary), eos_id=token_of("--eos", parsed.eos, vocabulary)
        ),
    )
    refuse_existing(parsed.to / parsed.name / str(parsed.version), replace=parsed.replace)
    print(f"reading {parsed.file} and running it ...", flush=True)
    written = write_onnx(
        parsed.file,
        hints,
        described,
        **common_options(parsed, description=f"Made from {parsed.file.name}"),
    )
    report(written.reading, written.notes)
    return written.folder


def _all(given: list[tuple[str, list[float] | None]]) -> dict[str, list[list[float]]]:
    """Returns all values given for each name."""
    found: dict[str, list[list[float]]] = {}
    for name, values in given:
        found.setdefault(name, []).extend([] if values is None else [values])
    return found


def _check_roles(hints: Hints) -> None:
    """Raises ExportError for an input that two flags name."""
    found: dict[str, str] = {}
    for flag, names in (
        ("--state", hints.states),
        ("--constant", hints.constants),
        ("--input", hints.inputs),
        ("--session-constant", hints.session_constants),
        ("--session-id", [hints.session_id]),
        ("--start", [hints.start]),
        ("--end", [hints.end]),
    ):
        for name in names:
            if name is not None and found.setdefault(name, flag) != flag:
                raise ExportError(f"{found[name]} and {flag} both name {name}: an input is one of them")


def report(reading: Reading, notes: object) -> None:
    """Prints what was found in the file."""
    for part in reading.inputs:
        if part.is_end:
            print(f"last step      {part.tensor} is true in it alone, where the client says so")
            continue
        window = f", of which {part.window} are those before" if part.window else ""
        print(f"a step reads   {part.tensor}, as {list(part.shape)} of each row{window}")
    for given in reading.outputs:
        print(f"a step gives   {given.tensor}")
    for state in reading.states:
        print(f"state          {state.input} -> {state.output}, rows counted by axis {state.batch_axis}")
        if state.initial is not None:
            print(f"               begins with {state.initial.size} numbers that are given")
    if reading.start is not None:
        print(f"first step     {reading.start} is true in it alone")
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
    return (
        f"one of {' or '.join(shown)}, {shown[0]} by default"
        if spec.choices
        else f"{shown[0]:.60} unless the opening gives it"
    )
