"""An ONNX file that nobody here made, to a bundle: `python -m export onnx FILE`.

1. The file's graph is kept as it is. Before it, what a step reads is brought into its form (type, axes), and after it,
   what it gives into the manifest's: [batch, time, ...], of which time is always 1.
2. The graph is run. Rows alone, in company, in any order, and steps after each other must have the bits that the file
   itself gives one row. Where company changes bits, or the file takes one row, rows are run one by one, and that is
   said.
3. Anything that is missing is told with the flag that gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.bundle import BundleOptions, Vocabularies, write_graphs
from export.errors import ExportError
from export.foreign.exposing import expose_states
from export.foreign.original import Original
from export.foreign.reading import Hints, Reading, read
from export.foreign.unkept import forced
from export.graphs import Graphs
from export.interface import Interface
from export.proofs.invariance import check_invariance
from export.proofs.parity import measure_parity
from export.proofs.runners import OnnxRunner
from export.surgery import Writer
from export.trace import make_trace
from export.vocabulary import Vocabulary
from service.repository.manifest import ConstantSpec, Dtype, Parity, SpecialTokens, StateSpec, StepSpec, TensorSpec

TOLERANCE = 1e-5
"""The largest absolute difference from the file itself: the same operators on the same numbers, in another company."""

_ELEMENT_TYPES: dict[Dtype, int] = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}
_INTEGERS = ("int64", "int32")


@dataclass(frozen=True, slots=True)
class Described:
    """What is told of a file beside its tensors. vocabulary: of the tokens that it reads; labels: of what it gives
    logits over, when those are not the tokens; feeds_back: whether its values are what the next step reads."""

    vocabulary: Vocabulary | None = None
    labels: Vocabulary | None = None
    feeds_back: bool = False
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)


@dataclass(frozen=True, slots=True)
class Written:
    """A bundle's folder, and what was found on the way to it."""

    folder: Path
    reading: Reading
    notes: Sequence[str]


def write_onnx(file: Path, hints: Hints, described: Described, **options: Unpack[BundleOptions]) -> Written:
    """Writes the bundle of an ONNX file and returns its folder, with what was found: see `export.bundle.write_seq2seq`.

    Raises ExportError that names the flag that helps, and as that does.
    """
    try:
        model = onnx.load(file)
        onnx.checker.check_model(model)
    except Exception as error:  # onnx and protobuf raise classes of their own
        raise ExportError(f"{file} is not an ONNX model: {error}") from error
    model, exposed = expose_states(model, hints)
    reading = read(model, hints)
    notes = [*exposed, *reading.notes]
    options["description"] += forced(notes)
    original = Original(model, reading)
    num_outputs = original.num_outputs()
    step = _step_spec(reading, described, num_outputs)
    interface = Interface(
        step=step,
        states=tuple(
            StateSpec(
                name=_plain(state.input.name),
                input=TensorSpec(
                    name=state.input.name,
                    dtype=state.input.dtype,
                    shape=(*state.shape[: state.batch_axis], "batch", *state.shape[state.batch_axis + 1 :]),
                ),
                output=state.output,
            )
            for state in reading.states
        ),
        step_vocabulary_size=None if described.vocabulary is None else len(described.vocabulary.tokens),
    )
    if step.logits is not None and described.labels is None and described.vocabulary is None:
        raise ExportError("logits need a vocabulary: give --vocabulary FILE or --labels FILE")
    graph = _wrap(model, reading, interface)
    interface, parity = _prove(graph, interface, original, notes)
    vocabularies = Vocabularies(target=described.vocabulary)
    if described.labels is not None:
        vocabularies = Vocabularies(input=described.vocabulary, target=described.labels)
    elif step.values is not None:
        vocabularies = Vocabularies(input=described.vocabulary)
    options["trace"] = _can_be_looked_into(graph, interface, notes)
    options["packages"] = ("onnx", "onnxruntime")
    folder = write_graphs(
        Graphs(step=graph),
        interface,
        vocabularies,
        described.special_tokens,
        parity,
        **options,
    )
    return Written(folder, reading, notes)


def _step_spec(reading: Reading, described: Described, num_outputs: int) -> StepSpec:
    feature_size = int(np.prod(reading.input_shape))
    is_tokens = reading.input.dtype in _INTEGERS
    if is_tokens and described.vocabulary is None:
        raise ExportError(f"{reading.input} reads tokens: give their names, one a line, with --vocabulary FILE")
    if not is_tokens and described.vocabulary is not None:
        raise ExportError(f"{reading.input} reads numbers: --vocabulary is for tokens, --labels for what it gives")
    if is_tokens and feature_size != 1:
        raise ExportError(f"{reading.input} reads {feature_size} tokens a step: only one a step is served")
    given = described.labels or described.vocabulary
    gives_logits = given is not None and len(given.tokens) == num_outputs
    if described.labels is not None and not gives_logits:
        raise ExportError(f"--labels has {len(described.labels.tokens)} lines, and a step gives {num_outputs} numbers")
    if described.feeds_back and (is_tokens or feature_size != num_outputs):
        raise ExportError(
            f"--feeds-back needs as many values as features, and a step reads {feature_size} and gives {num_outputs}"
        )
    output = TensorSpec(name="carousel/output", dtype="float32", shape=("batch", "time", num_outputs))
    return StepSpec(
        file="step.onnx",
        tokens=TensorSpec(name="carousel/input", dtype="int64", shape=("batch", "time")) if is_tokens else None,
        features=None
        if is_tokens
        else TensorSpec(name="carousel/input", dtype="float32", shape=("batch", "time", feature_size)),
        lengths=None,
        logits=output if gives_logits else None,
        values=None if gives_logits else output,
        feeds_back=described.feeds_back,
        constants=tuple(
            ConstantSpec(
                name=name, dtype=tensor.dtype, shape=tuple(int(axis) for axis in tensor.shape), values=tuple(values)
            )
            for name, (tensor, values) in reading.constants.items()
        ),
        max_chunk=1,
        max_rows=None if reading.has_dynamic_batch else 1,
    )


def _wrap(model: onnx.ModelProto, reading: Reading, interface: Interface) -> bytes:
    """The file's graph between what brings a step into its form and what brings it out of it."""
    wrapped = onnx.ModelProto()
    wrapped.CopyFrom(model)
    graph, step = wrapped.graph, interface.step
    rows: int | str = "batch" if step.max_rows is None else 1
    writer = Writer(graph, "carousel/")
    nodes = list(graph.node)
    del graph.node[:]
    rest = [size for place, size in enumerate(reading.input_shape) if place != reading.input_batch_axis]
    shape = writer.constant("input_shape", np.array([0, *rest], np.int64))  # 0: as many rows as there are
    last = step.input.name
    if reading.input.dtype != step.input.dtype:
        writer.node("Cast", [last], "carousel/cast", to=_ELEMENT_TYPES[reading.input.dtype])
        last = "carousel/cast"
    places = list(range(1, len(reading.input_shape)))
    places.insert(reading.input_batch_axis, 0)  # a row's own axes, with that of the rows among them
    if places == list(range(len(places))):
        writer.node("Reshape", [last, shape], reading.input.name)
    else:
        writer.node("Reshape", [last, shape], "carousel/rows_first")
        writer.node("Transpose", ["carousel/rows_first"], reading.input.name, perm=places)
    graph.node.extend(nodes)
    last = reading.output.name
    axis = reading.output_batch_axis
    if axis:
        ahead = [axis, *(place for place in range(len(reading.output.shape)) if place != axis)]
        writer.node("Transpose", [last], "carousel/output_rows_first", perm=ahead)
        last = "carousel/output_rows_first"
    flat = writer.constant("output_shape", np.array([0, 1, interface.step.output.shape[-1]], np.int64))
    name = step.output.name
    if reading.output.dtype == "float32":
        writer.node("Reshape", [last, flat], name)
    else:
        writer.node("Reshape", [last, flat], "carousel/flat")
        writer.node("Cast", ["carousel/flat"], name, to=TensorProto.FLOAT)
    _set_values(graph, interface, reading, rows)
    try:
        onnx.checker.check_model(wrapped)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the file's graph cannot be put between others: {error}") from error
    return wrapped.SerializeToString(deterministic=True)


def _set_values(graph: onnx.GraphProto, interface: Interface, reading: Reading, rows: int | str) -> None:
    """Declares the inputs and outputs that the manifest names."""
    step = interface.step

    def value(tensor: TensorSpec) -> onnx.ValueInfoProto:
        shape = [rows if axis == "batch" else 1 if axis == "time" else axis for axis in tensor.shape]
        return helper.make_tensor_value_info(tensor.name, _ELEMENT_TYPES[tensor.dtype], shape)

    weights = {tensor.name for tensor in graph.initializer}
    kept = [one for one in graph.input if one.name in weights and one.name != reading.input.name]
    constants = [TensorSpec(name=one.name, dtype=one.dtype, shape=one.shape) for one in step.constants]
    del graph.input[:], graph.output[:]
    graph.input.extend([value(step.input), *(value(state.input) for state in interface.states)])
    graph.input.extend([*map(value, constants), *kept])
    graph.output.append(value(step.output))
    graph.output.extend(value(state.input.model_copy(update={"name": state.output})) for state in interface.states)


def _prove(graph: bytes, interface: Interface, original: Original, notes: list[str]) -> tuple[Interface, Parity]:
    """The interface as the graph can be served, and its parity with the file."""
    one_by_one = replace(interface, step=interface.step.model_copy(update={"max_rows": 1}))
    if interface.step.max_rows == 1:
        notes.append("its batch is fixed at one row: sessions are run one by one")
    else:
        try:
            runner = OnnxRunner(Graphs(step=graph), interface)
            parity = measure_parity(runner, original, interface, tolerance=TOLERANCE, reference="the file")
            check_invariance(runner, interface)
            return interface, parity
        except ExportError as error:
            notes.append(f"sessions are run one by one, because company changes what a row is told: {error}")
        except Exception as error:  # ONNX Runtime raises classes of its own
            notes.append(f"sessions are run one by one, because more than one row cannot be run: {_first_line(error)}")
    runner = OnnxRunner(Graphs(step=graph), one_by_one)
    parity = measure_parity(runner, original, one_by_one, tolerance=TOLERANCE, reference="the file")
    check_invariance(runner, one_by_one)
    return one_by_one, parity


def _can_be_looked_into(graph: bytes, interface: Interface, notes: list[str]) -> bool:
    """Whether the file's layers are of operators that can be written out."""
    try:
        if make_trace(graph, interface) is not None:
            return True
        reason = "it has no LSTM, GRU or RNN operator"
    except Exception as error:  # a file's graph may be anything, and need not be looked into to be served
        reason = _first_line(error)
    notes.append(f"it cannot be looked into: {reason}")
    return False


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _plain(name: str) -> str:
    """A tensor's name as a state's."""
    return "".join(character if character.isalnum() or character in "_.-" else "_" for character in name)
