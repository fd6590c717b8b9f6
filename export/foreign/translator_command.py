"""`python -m export onnx DECODER --encoder ENCODER`: turns flags into the arguments of `translators`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from export.errors import ExportError
from export.folder import refuse_existing
from export.foreign.axes import Hints
from export.foreign.decoder_file import read_decoder
from export.foreign.encoder_file import EncoderFile
from export.foreign.flags import common_options, once, token_of, vocabulary_of
from export.foreign.initial import initial_values
from export.foreign.joints import Joints
from export.foreign.loading import load
from export.foreign.masks import FORMS
from export.foreign.names import split_pairs
from export.foreign.translators import Translated, write_translator
from export.foreign.writing import Written
from export.proofs.runners import Array
from service.repository.manifest import SpecialTokens

_OF_ONE_FILE = (
    "session_constant",
    "session_id",
    "start",
    "end",
    "window",
    "labels",
    "feeds_back",
    "expose_state",
    "sample_rate",
)
_OF_TWO_FILES = ("source_vocabulary", "source_bos", "source_eos", "context", "mask", "lengths")


def run(parsed: argparse.Namespace) -> Written:
    """Writes the bundle and returns it. Raises what `translators.write_translator` raises."""
    for name in _OF_ONE_FILE:
        if getattr(parsed, name):
            raise ExportError(f"--{name.replace('_', '-')} and --encoder do not go together")
    outputs = [one.name for one in load(parsed.encoder).graph.output]
    initial = once(parsed.initial, "--initial")
    given = {name: text for name, text in initial.items() if text in outputs}
    hints = Hints(
        states=once(split_pairs(parsed.state, parsed.file), "--state"),
        constants=once(parsed.constant, "--constant"),
        axes=once(parsed.axis, "--axis"),
        batch_axes=once(parsed.batch_axis, "--batch-axis"),
        inputs=parsed.input,
        outputs=parsed.output,
        initial={name: _values(name, text, outputs) for name, text in initial.items() if name not in given},
        force_state=parsed.force_state,
    )
    masks = dict(_mask(text) for text in parsed.mask)
    joints = Joints(once(parsed.context, "--context"), given, masks, parsed.lengths)
    source = vocabulary_of("--source-vocabulary", parsed.source_vocabulary, parsed.source_tokenizer)
    target = vocabulary_of("--vocabulary", parsed.vocabulary, parsed.tokenizer)
    told = Translated(
        source=source,
        target=target,
        source_bos=token_of("--source-bos", parsed.source_bos, source, is_of_file=source is not None),
        source_eos=token_of("--source-eos", parsed.source_eos, source, is_of_file=source is not None),
        special_tokens=SpecialTokens(
            bos_id=token_of("--bos", parsed.bos, target, is_of_file=target is not None),
            eos_id=token_of("--eos", parsed.eos, target, is_of_file=target is not None),
        ),
        max_source_length=parsed.max_source_length,
    )
    refuse_existing(parsed.to / parsed.name / str(parsed.version), replace=parsed.replace)
    print(f"reading {parsed.encoder} and {parsed.file}, and running them ...", flush=True)
    try:
        return write_translator(
            parsed.encoder,
            parsed.file,
            hints,
            joints,
            told,
            **common_options(parsed, description=f"Made from {parsed.encoder.name} and {parsed.file.name}"),
        )
    except ExportError as error:
        if _are_swapped(parsed.encoder, parsed.file):
            raise ExportError(
                f"{parsed.file} and {parsed.encoder} seem to be swapped: the first is an encoder, and the second a"
                f" decoder of one step. Say python -m export onnx {parsed.encoder} --encoder {parsed.file}"
            ) from error
        raise


def _are_swapped(encoder: Path, decoder: Path) -> bool:
    """Whether the files can be read with swapped roles."""
    try:
        read_decoder(encoder, EncoderFile(decoder, Hints(), Joints(), None), Hints(), Joints(), None)
    except Exception:  # a file in the wrong role may fail in any way
        return False
    return True


def refuse_without_encoder(parsed: argparse.Namespace) -> None:
    """Raises ExportError for flags that need --encoder."""
    for name in _OF_TWO_FILES:
        if getattr(parsed, name) not in (None, []):
            raise ExportError(f"--{name.replace('_', '-')} goes with --encoder FILE, which is not given")


def _values(name: str, text: str, outputs: Sequence[str]) -> Array:
    try:
        return initial_values(text)
    except ExportError as error:
        raise ExportError(
            f"--initial {name}={text}: it must be an output of the encoder ({', '.join(outputs)}), or numbers, or"
            " a .npy file"
        ) from error


def _mask(text: str) -> tuple[str, str | None]:
    name, equals, form = text.rpartition("=")
    if not equals:
        return text, None
    if form not in FORMS:
        raise ExportError(f"--mask {text}: {form} must be {', '.join(FORMS)}")
    return name, form
