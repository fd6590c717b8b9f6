"""`python -m export onnx DECODER --encoder ENCODER`: writes a translator of two files as a bundle.

1. The encoder is read by running it, and its outputs are matched with the decoder's inputs. The rest of the decoder is
   read like any file of one step.
2. Each way to run rows together is compared with a bare loop over the two files. The first one with the same bits is
   written; the last one may differ within a tolerance. See docs/decisions/0039.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Unpack

import numpy as np

from export.bundle import BundleOptions, Vocabularies, write_graphs
from export.errors import ExportError, first_line
from export.foreign.axes import Hints, listed
from export.foreign.decoder_file import read_decoder
from export.foreign.decoder_steps import DecoderFile
from export.foreign.encoder_file import EncoderFile
from export.foreign.encoder_graph import LENGTHS, SOURCE, Use, apart, together
from export.foreign.links import Links
from export.foreign.names import renamed
from export.foreign.original import Original
from export.foreign.proving import prove_chunks, random_inputs
from export.foreign.reading import Reading, read
from export.foreign.rows import with_rows_as_run
from export.foreign.step_graph import SOURCE_LENGTH, contexts_of, needs_length, states_of_source, step_over_source
from export.foreign.two_files import Pair, TranslatorReference
from export.foreign.wrapping import first_values, state_names, states_of, wrap
from export.foreign.writing import Written
from export.graphs import Graphs
from export.interface import Interface
from export.proofs import tolerances
from export.proofs.invariance import check_invariance
from export.proofs.parity import measure_parity
from export.proofs.runners import OnnxRunner
from export.vocabulary import Vocabulary
from service.repository.manifest import EncoderSpec, Parity, SpecialTokens, StateSpec, StepSpec, TensorSpec

_REFERENCE = "the two files"
_FILE = "encoder.onnx"


@dataclass(frozen=True, slots=True)
class Translated:
    """What the user says of a translator besides its tensors.

    source, target: vocabularies; None: only ids. source_bos, source_eos: the tokens that the server adds to each
    source. special_tokens: of the decoder.
    """

    source: Vocabulary | None
    target: Vocabulary | None
    source_bos: int | None
    source_eos: int | None
    special_tokens: SpecialTokens
    max_source_length: int


@dataclass(frozen=True, slots=True)
class _Mode:
    """A way to run the step: with rows of one source length or of any, and with one row (max_rows 1) or many (None)."""

    by_length: bool
    max_rows: int | None


def write_translator(
    encoder_file: Path,
    decoder_file: Path,
    hints: Hints,
    links: Links,
    described: Translated,
    **options: Unpack[BundleOptions],
) -> Written:
    """Writes the bundle of two ONNX files and returns its folder and what was found: see `writing.write_onnx`."""
    source_size = None if described.source is None else len(described.source.tokens)
    target_size = None if described.target is None else len(described.target.tokens)
    encoder = EncoderFile(encoder_file, hints, links, source_size)
    decoder = read_decoder(decoder_file, encoder, hints, links, target_size)
    _check_names(encoder, decoder, hints, links)
    notes = [*encoder.notes, *decoder.notes]
    reading = with_rows_as_run(decoder.bound, read(decoder.bound, decoder.hints), decoder.hints)
    notes += [*reading.notes, *(f"output {name} is not served" for name in reading.unserved)]
    size, takes_logarithms = _checked(decoder, reading, described.target, notes)
    _check_ids(described, size, encoder.vocabulary_size)
    target = described.target or _ids(size, "target", "--vocabulary", notes)
    source = described.source
    if source is None and encoder.vocabulary_size is not None:
        source = _ids(encoder.vocabulary_size, "source", "--source-vocabulary", notes)
    pair = Pair(encoder, decoder, reading, takes_logarithms)
    interface = _interface(pair, described, size)
    encoder_graph = _encoder_graph(pair, interface, notes)
    notes += renamed("state", state_names(reading))
    graphs, interface, parity = _prove(pair, interface, encoder_graph, notes)
    original = TranslatorReference(pair, interface)
    graphs, interface, parity = prove_chunks(graphs, interface, original, notes, parity)
    options["packages"] = ("onnx", "onnxruntime")
    vocabularies = Vocabularies(source=source, target=target)
    special = described.special_tokens
    folder = write_graphs(graphs, interface, vocabularies, special, parity, notes=notes, **options)
    if special.bos_id is None:
        notes.append("without --bos, the first token of each session must be fed")
    if special.eos_id is None:
        notes.append("without --eos, a generation ends at its limit")
    return Written(folder, reading, notes)


def _check_names(encoder: EncoderFile, decoder: DecoderFile, hints: Hints, links: Links) -> None:
    """Raises ExportError for a flag that names an input that neither file has."""
    inputs = {**encoder.inputs, **decoder.inputs}
    for flag, names in (
        ("--input", hints.inputs),
        ("--constant", hints.constants),
        ("--mask", links.masks),
        ("--lengths", links.lengths),
    ):
        if unknown := [name for name in names if name not in inputs]:
            shown = listed(inputs)
            raise ExportError(f"{flag} names {unknown[0]}, which the files do not have. They have: {shown}")


def _checked(decoder: DecoderFile, reading: Reading, target: Vocabulary | None, notes: list[str]) -> tuple[int, bool]:
    """Returns the number of logits of a step, and whether they are probabilities. Raises ExportError for a decoder that
    cannot be served."""
    if not reading.is_of_tokens:
        raise ExportError(
            f"{decoder.file.name}: {reading.inputs[0].tensor} reads numbers, but a translator's step must read a token"
        )
    if len(reading.outputs) != 1:
        raise ExportError("--output: a translator's step returns one output, its logits")
    if reading.inputs[0].size != 1:
        raise ExportError(
            f"{reading.inputs[0].tensor} reads {reading.inputs[0].size} tokens a step, but only one a step is served"
        )
    original = Original(decoder.bound, reading, {})
    shapes = original.output_shapes()
    size = prod(shapes[0])
    if target is not None and len(target.tokens) != size:
        raise ExportError(f"--vocabulary has {len(target.tokens)} tokens, but a step returns {size} logits")
    with random_inputs(size):
        useless = original.useless_states(size, may_be_all=True)
        gives_probabilities = original.gives_probabilities(size)
    notes += [f"state {name} changes nothing" for name in useless]
    if gives_probabilities:
        notes.append(f"{reading.outputs[0].tensor.name} is probabilities: the logits are their logarithms")
    return size, gives_probabilities


def _check_ids(described: Translated, target_size: int, source_size: int | None) -> None:
    """Raises ExportError for a special token that its vocabulary does not have."""
    special = described.special_tokens
    for flag, token_id, size in (
        ("--bos", special.bos_id, target_size),
        ("--eos", special.eos_id, target_size),
        ("--source-bos", described.source_bos, source_size or 0),
        ("--source-eos", described.source_eos, source_size or 0),
    ):
        if token_id is not None and token_id >= size:
            raise ExportError(f"{flag} {token_id} is outside the vocabulary of {size} tokens (0 to {size - 1})")


def _ids(size: int, side: str, flag: str, notes: list[str]) -> Vocabulary:
    """Returns a vocabulary of `size` tokens, named by their ids."""
    notes.append(f"{side} tokens are named by their ids, 0 to {size - 1}: {flag} FILE names them")
    return Vocabulary(tuple(map(str, range(size))), "whitespace")


def _interface(pair: Pair, described: Translated, size: int) -> Interface:
    """Returns the bundle's interface, whose steps may take rows with sources of any length."""
    encoder, decoder, reading = pair.encoder, pair.decoder, pair.reading
    features = (encoder.feature_size,) if encoder.feature_size else ()
    states = [_begun(state, decoder) for state in states_of(reading)]
    contexts = contexts_of(decoder, encoder)
    taken = [*(state.name for state in states), *(context.name for context in contexts)]
    return Interface(
        encoder=EncoderSpec(
            file=_FILE,
            source=TensorSpec(
                name=SOURCE, dtype="float32" if features else "int64", shape=("batch", "source", *features)
            ),
            lengths=TensorSpec(name=LENGTHS, dtype="int64", shape=("batch",)),
            max_source_length=described.max_source_length,
            bos_id=described.source_bos,
            eos_id=described.source_eos,
        ),
        step=StepSpec(
            file="step.onnx",
            tokens=TensorSpec(name="carousel/input", dtype="int64", shape=("batch", "time")),
            logits=TensorSpec(name="carousel/output", dtype="float32", shape=("batch", "time", size)),
            max_chunk=1,
        ),
        states=(*states, *states_of_source(decoder, by_length=False, taken=taken)),
        contexts=contexts,
        source_vocabulary_size=encoder.vocabulary_size,
        step_vocabulary_size=size,
        least_token=0,
        first_values=first_values(reading),
    )


def _begun(state: StateSpec, decoder: DecoderFile) -> StateSpec:
    if state.input.name not in decoder.initial:
        return state
    return state.model_copy(update={"initial": f"carousel/initial/{state.input.name}"})


def _uses(interface: Interface, decoder: DecoderFile) -> list[Use]:
    """Returns how the bundle uses the encoder's outputs, without the lengths."""
    uses = [
        Use(output, context.input.model_copy(update={"name": context.output}))
        for context, output in zip(interface.contexts, decoder.contexts.values(), strict=True)
    ]
    begun: Mapping[str, str] = {**decoder.initial, **decoder.kept}
    return uses + [
        Use(begun[state.input.name], state.input.model_copy(update={"name": state.initial}))
        for state in interface.states
        if state.initial is not None and state.input.name in begun
    ]


def _encoder_graph(pair: Pair, interface: Interface, notes: list[str]) -> bytes:
    """Returns a graph that encodes all sources in one run, if that keeps each source's bits; else one by one."""
    encoder, uses = pair.encoder, _uses(interface, pair.decoder)
    length_name = f"{SOURCE_LENGTH}/first" if needs_length(pair.decoder) else None
    original = TranslatorReference(pair, interface)
    try:
        graph = together(encoder, uses, length_name)
        if _encodes_alike(graph, original, interface, encoder):
            notes.append("sources of any lengths are encoded in one run, with the same bits as alone")
            return graph
        why = "padding or other sources would change them"
    except Exception as error:  # ONNX Runtime raises classes of its own
        why = first_line(error)
    notes.append(f"sources are encoded one by one: {why}")
    return apart(encoder, uses, length_name)


def _encodes_alike(graph: bytes, original: TranslatorReference, interface: Interface, encoder: EncoderFile) -> bool:
    """Whether padded rows of random lengths are encoded with the bits of each row alone."""
    runner = OnnxRunner(Graphs(step=graph, encoder=graph), interface)
    generator = np.random.default_rng(0)
    longest = min(64, interface.encoder.max_source_length if interface.encoder else 1)
    for count, extra in ((1, 0), (1, 8), (7, 0), (33, 16)):
        lengths = generator.integers(1, longest + 1, count)
        width = -(-int(lengths.max()) // 8) * 8 + extra
        rows = [encoder.draw(int(length), int(generator.integers(1 << 30))) for length in lengths]
        source = np.zeros((count, width, *rows[0].shape[1:]), rows[0].dtype)
        for place, row in enumerate(rows):
            source[place, : len(row)] = row
        for one, other in zip(runner.encode(source, lengths), original.encode(source, lengths), strict=True):
            if one.shape != other.shape or one.tobytes() != other.tobytes():
                return False
    return True


def _prove(
    pair: Pair, interface: Interface, encoder_graph: bytes, notes: list[str]
) -> tuple[Graphs, Interface, Parity]:
    """Returns the first way to run rows together that gives the files' own results. Raises ExportError if none does."""
    encoder, decoder, reading = pair.encoder, pair.decoder, pair.reading
    takes_logarithms = pair.takes_logarithms
    has_source = needs_length(decoder)
    ways = [_Mode(by_length=False, max_rows=None)]
    if has_source:
        ways.append(_Mode(by_length=True, max_rows=None))
    if reading.fixed_batch is not None:
        ways = []
    ways.append(_Mode(by_length=has_source, max_rows=1))
    for way in ways:
        own = replace(
            interface,
            step=interface.step.model_copy(update={"max_rows": way.max_rows}),
            states=tuple(
                state.model_copy(update={"is_uniform": way.by_length}) if state.input.name == SOURCE_LENGTH else state
                for state in interface.states
            ),
        )
        original = TranslatorReference(pair, own)
        is_last = way is ways[-1]
        try:
            model = step_over_source(decoder, encoder, by_length=way.by_length)
            size = [int(own.step.output.shape[-1])]
            step = wrap(model, reading, own, sizes=size, takes_logarithms=takes_logarithms)
            graphs = Graphs(step=step, encoder=encoder_graph)
            runner = OnnxRunner(graphs, own)
            parity = measure_parity(runner, original, own, tolerance=tolerances.FILE, reference=_REFERENCE)
            inexact = own.step.output.name if takes_logarithms else None  # ONNX Runtime computes its own logarithms
            worst = max(error for name, error in parity.max_abs_error.items() if name != inexact)
            if worst and not is_last:
                continue
            check_invariance(runner, own)
        except ExportError:
            if is_last:
                raise
            continue
        except Exception as error:  # ONNX Runtime raises its own error classes
            if is_last:
                raise ExportError(f"the two files cannot be run together: {first_line(error)}") from error
            continue
        notes.append(_as_note(way, has_source=has_source))
        same = f"its outputs differ by up to {worst:.1g} from" if worst else "a session gets the same bits as"
        logits = f", except for logits, which may be off by {tolerances.FILE:g}: they are logarithms" if inexact else ""
        notes.append(f"{same} a bare loop over the two files{logits}")
        return graphs, own, parity
    raise AssertionError("the last way returns or raises")


def _as_note(way: _Mode, *, has_source: bool) -> str:
    if way.max_rows == 1:
        return "sessions step one by one"
    if way.by_length:
        return "sessions whose sources have the same length step in one run"
    return "sessions step in one run" + (", with sources of any lengths" if has_source else "")
