"""`python -m export onnx DECODER --encoder ENCODER`: turns flags into the arguments of `translators`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from export.errors import ExportError
from export.folder import refuse_existing
from export.foreign.arguments import OnnxFlags
from export.foreign.axes import Hints
from export.foreign.decoder_file import read_decoder
from export.foreign.encoder_file import EncoderFile
from export.foreign.flags import once, token_of, vocabulary_of
from export.foreign.initial import initial_values
from export.foreign.links import Links
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


def run(flags: OnnxFlags, encoder: Path) -> Written:
    """Writes the bundle and returns it. Raises what `translators.write_translator` raises."""
    for name in _OF_ONE_FILE:
        if getattr(flags, name):
            raise ExportError(f"--{name.replace('_', '-')} and --encoder cannot be combined")
    outputs = [one.name for one in load(encoder).graph.output]
    initial = once(flags.initial, "--initial")
    given = {name: text for name, text in initial.items() if text in outputs}
    hints = hints_of(flags, {name: _values(name, text, outputs) for name, text in initial.items() if name not in given})
    masks = dict(_mask(text) for text in flags.mask)
    links = Links(once(flags.context, "--context"), given, masks, flags.lengths)
    source = vocabulary_of("--source-vocabulary", flags.source_vocabulary, flags.source_tokenizer)
    target = vocabulary_of("--vocabulary", flags.vocabulary, flags.tokenizer)
    described = Translated(
        source=source,
        target=target,
        source_bos=token_of("--source-bos", flags.source_bos, source, is_of_file=source is not None),
        source_eos=token_of("--source-eos", flags.source_eos, source, is_of_file=source is not None),
        special_tokens=SpecialTokens(
            bos_id=token_of("--bos", flags.bos, target, is_of_file=target is not None),
            eos_id=token_of("--eos", flags.eos, target, is_of_file=target is not None),
        ),
        max_source_length=flags.max_source_length,
    )
    refuse_existing(flags.folder, replace=flags.replace)
    print(f"reading {encoder} and {flags.file}, and running them ...", flush=True)
    try:
        return write_translator(
            encoder,
            flags.file,
            hints,
            links,
            described,
            **flags.options(description=f"Made from {encoder.name} and {flags.file.name}"),
        )
    except ExportError as error:
        if _are_swapped(encoder, flags.file):
            raise ExportError(
                f"{flags.file} and {encoder} seem to be swapped: the first is an encoder, and the second a decoder of"
                f" one step. Use python -m export onnx {encoder} --encoder {flags.file}"
            ) from error
        raise


def hints_of(flags: OnnxFlags, initial: Mapping[str, Array]) -> Hints:
    """Returns what flags say of any file, alone or with an encoder. initial: first values of states, by input."""
    return Hints(
        states=once(split_pairs(flags.state, flags.file), "--state"),
        constants=once(flags.constant, "--constant"),
        axes=once(flags.axis, "--axis"),
        batch_axes=once(flags.batch_axis, "--batch-axis"),
        inputs=flags.input,
        outputs=flags.output,
        initial=initial,
        force_state=flags.force_state,
    )


def _are_swapped(encoder: Path, decoder: Path) -> bool:
    """Whether the files can be read with swapped roles."""
    try:
        read_decoder(encoder, EncoderFile(decoder, Hints(), Links(), None), Hints(), Links(), None)
    except Exception:  # a file in the wrong role may fail in any way
        return False
    return True


def refuse_without_encoder(flags: OnnxFlags) -> None:
    """Raises ExportError for flags that need --encoder."""
    for name in _OF_TWO_FILES:
        if getattr(flags, name) not in (None, []):
            raise ExportError(f"--{name.replace('_', '-')} needs --encoder FILE")


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
