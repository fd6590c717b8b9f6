"""`python -m export transducer`: reads the files that flags name, joins, proves and writes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Unpack

from export.bundle import BundleOptions
from export.errors import ExportError
from export.folder import refuse_existing
from export.foreign.axes import Hints
from export.foreign.command import report
from export.foreign.flags import once, vocabulary_of
from export.foreign.names import split_pairs
from export.foreign.notes import OneByOne
from export.foreign.writing import Written, write_model
from export.transducers.arguments import TransducerFlags
from export.transducers.bare_loop import Rules, encoded_size
from export.transducers.composing import compose
from export.transducers.decoders import Decoder, JoinedDecoder, ThreeFiles
from export.transducers.network import Network
from export.transducers.parts import read_encoder, read_joiner, read_predictor
from export.transducers.proving import described_as, hints_of, prove_emitting, prove_loop
from export.vocabulary import Vocabulary


def run(flags: TransducerFlags) -> Path:
    """Writes the bundle and returns its folder. Raises what `write_transducer` raises."""
    refuse_existing(flags.folder, replace=flags.replace)
    files = [flags.encoder, flags.predictor, *([flags.joiner] if flags.joiner else [])]
    hints = Hints(
        states=once(split_pairs(flags.state, files[0]), "--state"),
        axes=once(flags.axis, "--axis"),
        batch_axes=once(flags.batch_axis, "--batch-axis"),
        force_state=flags.force_state,
    )
    print(f"reading {', '.join(map(str, files))} and running them ...", flush=True)
    outputs = {"encoder": flags.encoder_output, "predictor": flags.predictor_output}
    inputs = {what: name for what, name in (("encoded", flags.encoded), ("predicted", flags.predicted)) if name}
    rules = Rules(
        blank_id=flags.blank,
        start_id=flags.blank if flags.start_token is None else flags.start_token,
        max_symbols=flags.max_symbols,
        blank_penalty=flags.blank_penalty,
        history=flags.history,
    )
    encoder, decoder = read_files(files, hints, rules, outputs=outputs, inputs=inputs)
    vocabulary = vocabulary_of("--vocabulary", flags.vocabulary, "whitespace")
    if vocabulary is None:
        vocabulary = Vocabulary(tuple(f"<{token}>" for token in range(decoder.vocabulary_size)), "whitespace")
    written = write_transducer(
        encoder,
        decoder,
        rules,
        vocabulary,
        **flags.options(description=f"Made from {', '.join(file.name for file in files)}"),
    )
    report(written.reading, written.notes)
    return written.folder


def read_files(
    files: list[Path],
    hints: Hints,
    rules: Rules,
    *,
    outputs: dict[str, str | None] | None = None,
    inputs: dict[str, str] | None = None,
) -> tuple[Network, Decoder]:
    """Reads the encoder and the decoder.

    files: encoder, prediction network and joiner; or the encoder, and one file with both others. outputs, inputs: names
    of tensors from flags. Raises ExportError.
    """
    output_names = outputs or {}
    encoder = read_encoder(files[0], hints, output_names.get("encoder"))
    predictor = read_predictor(files[1], hints, output_names.get("predictor"))
    _check_states(hints, (encoder, predictor))
    is_joined = "encoded" in predictor.reads
    if len(files) == 2:
        if not is_joined:
            raise ExportError(f"{files[1]} does not read an encoded frame: give the joiner as the third file")
        _check_tokens(rules, predictor.gives.size)
        decoder: Decoder = JoinedDecoder(predictor, rules.start_id)
    else:
        if is_joined:
            raise ExportError(f"{files[1]} reads an encoded frame, as a joiner does: omit {files[2]}")
        sizes = {"encoded": _sizes(encoder)[0], "predicted": predictor.gives.size}
        joiner = read_joiner(files[2], hints, sizes, inputs or {})
        _check_tokens(rules, joiner.gives.size)
        decoder = ThreeFiles(predictor, joiner, rules.start_id)
    if encoder.gives.size % encoded_size(encoder, decoder):
        raise ExportError(
            f"{files[0]} returns {encoder.gives.size} numbers a step, which is no multiple of the joiner's"
            f" {encoded_size(encoder, decoder)} a frame: are the files of one model?"
        )
    return encoder, decoder


def _check_states(hints: Hints, networks: tuple[Network, Network]) -> None:
    """Raises ExportError for a pair of states, from flags, that neither file has."""
    known = {(network.role, kept.input.name, kept.output) for network in networks for kept in network.states}
    own = {(name.removeprefix(f"{role}."), output.removeprefix(f"{role}.")) for role, name, output in known}
    for pair in hints.states.items():
        if pair not in own and pair not in {(name, output) for _, name, output in known}:
            files = " nor ".join(str(network.file) for network in networks)
            raise ExportError(f"--state {'='.join(pair)}: neither {files} has such an input and such an output")


def _check_tokens(rules: Rules, size: int) -> None:
    """Raises ExportError for a blank or a start token out of range. size: the number of the joiner's logits."""
    for flag, token in (("--blank", rules.blank_id), ("--start-token", rules.start_id)):
        if not 0 <= token < size:
            raise ExportError(f"{flag} {token} is outside the joiner's {size} logits (0 to {size - 1})")


def _sizes(encoder: Network) -> list[int]:
    """Returns possible sizes of an encoded frame: the last and the first axis of the encoder's output."""
    shape = [axis for axis in encoder.gives.row_shape if axis != 1] or [1]
    return [shape[-1], shape[0]]


def write_transducer(
    encoder: Network, decoder: Decoder, rules: Rules, vocabulary: Vocabulary, **options: Unpack[BundleOptions]
) -> Written:
    """Writes the bundle of a transducer and returns it and what was found.

    Raises ExportError when the files are not of one model or a proof fails, and what `export.bundle.write_seq2seq`
    raises.
    """
    size = decoder.vocabulary_size
    if len(vocabulary.tokens) != size:
        raise ExportError(f"--vocabulary has {len(vocabulary.tokens)} tokens, but the joiner returns {size} logits")
    composed = compose(encoder, decoder, rules)
    margins = prove_loop(composed, encoder, decoder, rules)
    note = prove_emitting(encoder, decoder, rules, vocabulary, margins)
    if isinstance(note, OneByOne):
        composed = compose(encoder, decoder, rules, rows=1)
    written = write_model(composed.model, hints_of(composed), described_as(composed, vocabulary), **options)
    notes = [note for network in (encoder, *decoder.networks) for note in network.notes]
    return replace(written, notes=[*notes, note, *written.notes])
