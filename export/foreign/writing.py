"""Writes another exporter's ONNX file as a bundle: `python -m export onnx FILE`.

1. The file's graph stays unchanged. Nodes before it convert a step's input to the file's form (type, axes). Nodes after
   it convert the outputs to the manifest's form: [batch, time, ...], where time is always 1.
2. The graph is run. One row must be within `tolerances.FILE` of what the file itself gives. Rows alone, rows in a
   batch, in any order, and consecutive steps must have the same bits as each other. If batching changes bits, or if the
   file takes one row, rows run one by one, and a note says so.
3. If something is missing, the error names the flag that gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Unpack

import onnx

from export.bundle import BundleOptions, Vocabularies, refuse_sample_rate, write_graphs
from export.errors import ExportError
from export.foreign.axes import Hints
from export.foreign.branches import without_others
from export.foreign.causes import of_other_rows
from export.foreign.defaults import open_defaults
from export.foreign.exposing import expose_states
from export.foreign.loading import load
from export.foreign.names import plain_names, renamed
from export.foreign.notes import Forced
from export.foreign.original import Original
from export.foreign.over_time import check_over_time
from export.foreign.proving import prove_chunks, prove_file, random_inputs
from export.foreign.reading import Reading, StepInput, read
from export.foreign.rows import free_rows, with_rows_as_run
from export.foreign.wrapping import first_values, state_names, states_of, wrap
from export.graphs import Graphs
from export.interface import Interface
from export.vocabulary import Vocabulary
from service.repository.manifest import ConstantSpec, EmitsSpec, Parity, PortSpec, SpecialTokens, StepSpec, TensorSpec


@dataclass(frozen=True, slots=True)
class Described:
    """What the user says of a file besides its tensors.

    vocabulary: of the tokens that it reads. labels: of its logits, if these are not over the tokens, or of the tokens
    that it emits. feeds_back: whether its values are the next step's input. emits: how its values encode emitted
    tokens.
    """

    vocabulary: Vocabulary | None = None
    labels: Vocabulary | None = None
    feeds_back: bool = False
    emits: EmitsSpec | None = None
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)


@dataclass(frozen=True, slots=True)
class Written:
    """A bundle's folder, and what was found while making it."""

    folder: Path
    reading: Reading
    notes: Sequence[str]


def write_onnx(file: Path, hints: Hints, described: Described, **options: Unpack[BundleOptions]) -> Written:
    """Writes the bundle of an ONNX file and returns its folder and what was found.

    Raises ExportError that names the flag that helps, and what `export.bundle.write_seq2seq` raises.
    """
    return write_model(load(file), hints, described, **options)


@dataclass(frozen=True, slots=True)
class Proven:
    """A file's graphs, compared with the file."""

    reading: Reading
    notes: list[str]
    graphs: Graphs
    interface: Interface
    parity: Parity


def write_model(
    whole: onnx.ModelProto, hints: Hints, described: Described, **options: Unpack[BundleOptions]
) -> Written:
    """Writes the bundle of a model that `loading.load` has read: see `write_onnx`."""
    refuse_sample_rate(options, is_of_tokens=described.vocabulary is not None)
    proven = prove_model(whole, hints, described)
    forced = [note for note in proven.notes if isinstance(note, Forced)]
    options["description"] += "".join(f". {note[:1].upper()}{note[1:]}" for note in forced)
    vocabularies = Vocabularies(target=described.vocabulary)
    if described.labels is not None or proven.interface.step.values is not None:
        vocabularies = Vocabularies(input=described.vocabulary, target=described.labels)
    options["packages"] = ("onnx", "onnxruntime")
    folder = write_graphs(
        proven.graphs,
        proven.interface,
        vocabularies,
        described.special_tokens,
        proven.parity,
        notes=proven.notes,
        **options,
    )
    return Written(folder, proven.reading, proven.notes)


def prove_model(whole: onnx.ModelProto, hints: Hints, described: Described) -> Proven:
    """Returns the proven graphs that `write_model` writes. Raises ExportError."""
    hints, opened = open_defaults(whole, hints)
    model, hints, decided, left_out = without_others(whole, hints)
    model, exposed = expose_states(model, hints)
    reading = with_rows_as_run(model, read(model, hints), hints)
    notes = [*opened, *left_out, *exposed, *reading.notes]
    notes += [f"output {name} is not served: name it with --output, too" for name in reading.unserved]
    if reading.fixed_batch not in (None, 1):
        notes.append(f"its batch is declared as {reading.fixed_batch} rows; any number is assumed")
        free_rows(model, reading)
        free_rows(whole, reading)
    original = Original(model if hints.expose_state else whole, reading, {} if hints.expose_state else decided)
    shapes = original.output_shapes()
    step = _step_spec(reading, described, shapes, is_tokens=_reads_tokens(reading, described, hints, notes))
    vocabulary_size = None if described.vocabulary is None else len(described.vocabulary.tokens)
    with random_inputs(vocabulary_size):
        notes += filter(None, [check_over_time(model, reading, original, vocabulary_size)])
        useless = original.useless_states(vocabulary_size, may_be_all=hints.force_state)
        if step.logits is not None and original.gives_probabilities(vocabulary_size):
            original.takes_logarithms = True
            notes.append(f"{reading.outputs[0].tensor.name} is probabilities: the logits are their logarithms")
    of_server = () if described.emits is None else (described.emits.history, described.emits.count)
    for name in [name for name in useless if name not in of_server]:
        note = f"state {name} changes nothing"
        notes.append(Forced(note) if len(useless) == len(reading.states) else note)
    interface = Interface(
        step=step,
        states=states_of(reading),
        step_vocabulary_size=vocabulary_size,
        least_token=0,
        first_values=first_values(reading),
    )
    if step.logits is not None and described.labels is None and described.vocabulary is None:
        raise ExportError("logits need a vocabulary: give --vocabulary FILE or --labels FILE")
    notes += renamed("state", state_names(reading))
    notes += renamed("input", [part.tensor.name for part in reading.inputs if step.inputs])
    notes += renamed("output", [one.tensor.name for one in reading.outputs if step.outputs])
    sizes = list(map(prod, shapes))
    wrapped = partial(wrap, model, reading, sizes=sizes, takes_logarithms=original.takes_logarithms)
    graph, interface, parity = prove_file(wrapped, interface, original, notes, of_other_rows(model, reading, sizes))
    graphs, interface, parity = prove_chunks(Graphs(step=graph), interface, original, notes, parity)
    return Proven(reading, notes, graphs, interface, parity)


def _reads_tokens(reading: Reading, described: Described, hints: Hints, notes: list[str]) -> bool:
    """Whether a step reads a token: one integer, with a vocabulary.

    Adds a note for an integer that is no token. Raises ExportError if no flag says which it is.
    """
    if not reading.is_of_tokens or described.vocabulary is not None:
        return reading.is_of_tokens
    source = reading.inputs[0].tensor
    if source.name not in hints.inputs:
        raise ExportError(
            f"{source} reads integers. If they are tokens, give their names, one a line, with --vocabulary FILE; if"
            f" they are numbers, such as a count or a price in cents, use --input {source.name}"
        )
    notes.append(f"{source.name} has integers up to 2^24, not tokens; with --vocabulary they would be tokens")
    return False


def _step_spec(
    reading: Reading, described: Described, shapes: Sequence[tuple[int, ...]], *, is_tokens: bool
) -> StepSpec:
    """Returns the step's entry in the manifest. shapes: of the outputs. is_tokens: whether a step reads a token."""
    feature_size, num_outputs = sum(part.size for part in reading.inputs), sum(map(prod, shapes))
    first = reading.inputs[0].tensor
    if not is_tokens and described.vocabulary is not None:
        raise ExportError(
            f"{first} reads numbers: --vocabulary is for tokens that it reads, --labels for logits that it returns"
        )
    if is_tokens and feature_size != 1:
        raise ExportError(f"{first} reads {feature_size} tokens a step: only one a step is served")
    given = described.labels or described.vocabulary
    gives_logits = (
        described.emits is None and given is not None and len(shapes) == 1 and len(given.tokens) == num_outputs
    )
    if described.labels is not None and not gives_logits and described.emits is None:
        raise ExportError(
            f"--labels has {len(described.labels.tokens)} lines, but a step returns {num_outputs} numbers"
        )
    if described.feeds_back and any(part.is_end for part in reading.inputs):
        raise ExportError(
            "--feeds-back and --end cannot be combined: a step's output does not say whether it is the last"
        )
    if described.feeds_back and (is_tokens or feature_size != num_outputs):
        raise ExportError(
            f"--feeds-back needs as many values as features, but a step reads {feature_size} and returns {num_outputs}"
        )
    whole = [part.tensor for part in reading.inputs if part.tensor.dtype.startswith("int")]
    if described.feeds_back and whole and not all(one.tensor.dtype.startswith("int") for one in reading.outputs):
        raise ExportError(f"--feeds-back: {whole[0]} reads integers, but a step returns floats")
    output = TensorSpec(name="carousel/output", dtype="float32", shape=("batch", "time", num_outputs))
    has_names = len(reading.inputs) > 1 or len(shapes) > 1 or bool(whole)  # the server checks whole numbers by name
    names = plain_names(one.tensor.name for one in reading.outputs)
    return StepSpec(
        file="step.onnx",
        tokens=TensorSpec(name="carousel/input", dtype="int64", shape=("batch", "time")) if is_tokens else None,
        features=None
        if is_tokens
        else TensorSpec(name="carousel/input", dtype="float32", shape=("batch", "time", feature_size)),
        lengths=None,
        logits=output if gives_logits else None,
        values=None if gives_logits else output,
        inputs=tuple(
            _input_port(part, name)
            for part, name in zip(reading.inputs, plain_names(one.tensor.name for one in reading.inputs), strict=True)
            if has_names and not is_tokens
        ),
        outputs=tuple(
            PortSpec(name=name, dtype=one.tensor.dtype, shape=shape)
            for one, name, shape in zip(reading.outputs, names, shapes, strict=True)
            if has_names and not gives_logits
        ),
        emits=described.emits,
        feeds_back=described.feeds_back,
        constants=tuple(
            ConstantSpec(
                name=name, dtype=tensor.dtype, shape=tuple(int(axis) for axis in tensor.shape), values=tuple(values)
            )
            for name, (tensor, values) in reading.constants.items()
            if name not in reading.repeated
        ),
        max_chunk=1,
        max_rows=1 if reading.fixed_batch == 1 else None,
    )


def _input_port(part: StepInput, name: str) -> PortSpec:
    shape = [axis for axis in part.shape if axis != 1]
    if part.window:
        shape[-1] -= part.window
    return PortSpec(name=name, dtype=part.tensor.dtype, shape=tuple(shape), is_end=part.is_end)
