"""`python -m export onnx`: turns flags into the arguments of `writing`, and prints what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from export.errors import ExportError
from export.folder import refuse_existing
from export.foreign import translator_command
from export.foreign.arguments import OnnxFlags
from export.foreign.axes import Hints
from export.foreign.flags import once, token_of, vocabulary_of
from export.foreign.initial import initial_values
from export.foreign.reading import Reading
from export.foreign.session_constants import SessionConstant
from export.foreign.writing import Described, write_onnx
from service.repository.manifest import SpecialTokens


def run(flags: OnnxFlags) -> Path:
    """Writes the bundle and returns its folder. Raises as `write_onnx` and `write_translator` do."""
    if flags.encoder is not None:
        written = translator_command.run(flags, flags.encoder)
        report(written.reading, written.notes)
        return written.folder
    translator_command.refuse_without_encoder(flags)
    initial = {name: initial_values(text) for name, text in once(flags.initial, "--initial").items()}
    hints = replace(
        translator_command.hints_of(flags, initial),
        windows=once(flags.window, "--window"),
        start=flags.start,
        end=flags.end,
        session_constants=_all(flags.session_constant),
        session_id=flags.session_id,
        expose_state=flags.expose_state,
    )
    _check_roles(hints)
    vocabulary = vocabulary_of("--vocabulary", flags.vocabulary, flags.tokenizer)
    described = Described(
        vocabulary=vocabulary,
        labels=vocabulary_of("--labels", flags.labels, "whitespace"),
        feeds_back=flags.feeds_back,
        special_tokens=SpecialTokens(
            bos_id=token_of("--bos", flags.bos, vocabulary), eos_id=token_of("--eos", flags.eos, vocabulary)
        ),
    )
    refuse_existing(flags.folder, replace=flags.replace)
    print(f"reading {flags.file} and running it ...", flush=True)
    written = write_onnx(
        flags.file,
        hints,
        described,
        **flags.options(description=f"Made from {flags.file.name}"),
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
                raise ExportError(f"{found[name]} and {flag} both name {name}: use one of them")


def report(reading: Reading, notes: Sequence[str]) -> None:
    """Prints what was found in the file."""
    for part in reading.inputs:
        if part.is_end:
            print(f"last step      {part.tensor} is true only at a session's last step, if the client sets it")
            continue
        window = f", of which the first {part.window} repeat earlier ones" if part.window else ""
        print(f"a step reads   {part.tensor}, as {list(part.shape)} for each row{window}")
    for given in reading.outputs:
        print(f"a step returns {given.tensor}")
    for state in reading.states:
        print(f"state          {state.input} -> {state.output}, batch axis {state.batch_axis}")
        if state.initial is not None:
            print(f"               begins with {state.initial.size} given numbers")
    if reading.start is not None:
        print(f"first step     {reading.start} is true only at a session's first step")
    for constant in reading.session_constants:
        print(f"each session   {constant.tensor}: {_kind(constant)}")
    for name, (tensor, values) in reading.constants.items():
        print(f"constant       {name} {tensor.dtype} = {', '.join(f'{value:g}' for value in values)}")
    for note in notes:
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
