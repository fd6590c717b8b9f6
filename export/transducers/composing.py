"""Composes a transducer into one graph of one step: the encoder, then the loop that emits tokens.

For each row, a step returns the number of emitted tokens, the number of encoded frames that reached the largest number
of tokens, the tokens, and their log-probabilities: see `service.repository.manifest.EmitsSpec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, version_converter

from export.errors import ExportError, first_line
from export.proofs.runners import Array
from export.surgery import copy_of, element_type, opset_of
from export.transducers.bare_loop import Rules, num_frames
from export.transducers.decoders import CONTEXT, Decoder
from export.transducers.emission import EMITTED, NUM_EMITTED, OUTPUT, Emission, Parts
from export.transducers.network import Network, Port
from service.repository.manifest import EmitsSpec

_MIN_OPSET = 13
"""The least opset of the operators that join the files."""


@dataclass(frozen=True, slots=True)
class Composed:
    """The composed graph.

    states: outputs by input, the encoder's first. batch_axes: by state input. initial: first values that are not zeros,
    without the batch axis, by state input. emits: how a step's output encodes tokens. frames: the step's input.
    """

    model: onnx.ModelProto
    states: dict[str, str]
    batch_axes: dict[str, int]
    initial: dict[str, Array]
    emits: EmitsSpec
    frames: Port


def size_of_step(capacity: int) -> int:
    """Returns how many numbers a step returns for a row."""
    return 2 + 2 * capacity


def compose(encoder: Network, decoder: Decoder, rules: Rules, *, rows: int | None = None) -> Composed:
    """Returns the composed graph. rows: of a run; None: any number, if the files take any. Raises ExportError for files
    that cannot be joined."""
    encoder, *others = _in_opset([encoder, *decoder.networks])
    capacity = num_frames(encoder, decoder) * rules.max_symbols
    model = copy_of(encoder.model)
    graph = model.graph
    for network in others:
        _add_imports(model, network.model)
    model.ir_version = max(network.model.ir_version for network in (encoder, *others))
    parts = Parts(encoder, decoder, others, rules, capacity)
    Emission(graph, parts).write()
    states = {kept.input.name: kept.output for kept in encoder.states}
    axes = {kept.input.name: kept.input.batch_axis for kept in encoder.states}
    initial: dict[str, Array] = {}
    shapes = parts.carried_shapes
    for one, shape in zip(decoder.carried, shapes, strict=True):
        states[one.name] = f"{one.name}/next"
        axes[one.name] = 0
        if one.initial.any():
            initial[one.name] = one.initial.reshape(shape)
    for name in (EMITTED, NUM_EMITTED):
        states[name], axes[name] = f"{name}/next", 0
    if rules.blank_id:
        initial[EMITTED] = np.full(rules.history, rules.blank_id, np.int64)
    _declare(graph, parts, states, rows)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the files cannot be joined into one graph: {error}") from error
    emits = EmitsSpec(
        blank_id=rules.blank_id,
        max_symbols=rules.max_symbols,
        num_frames=parts.num_frames,
        history=EMITTED,
        count=NUM_EMITTED,
        context=next((one.name for one in decoder.carried if one.name == CONTEXT), None),
    )
    return Composed(model, states, axes, initial, emits, encoder.reads["frames"])


def _add_imports(model: onnx.ModelProto, other: onnx.ModelProto) -> None:
    known = {one.domain for one in model.opset_import}
    model.opset_import.extend(one for one in other.opset_import if one.domain not in known)


def _declare(graph: onnx.GraphProto, parts: Parts, states: dict[str, str], num_rows: int | None) -> None:
    """Declares the graph's inputs and outputs. num_rows: the fixed number of rows; None: any, if all files take any."""
    encoder, decoder = parts.encoder, parts.decoder
    weights = {tensor.name for tensor in graph.initializer}
    kept = [one for one in graph.input if one.name in weights]
    takes_any = num_rows is None and all(_takes_rows(network) for network in (encoder, *parts.others))
    rows: str | int = "batch" if takes_any else 1
    ports = [encoder.reads["frames"], *(kept.input for kept in encoder.states)]
    info = helper.make_tensor_value_info

    def shape(port: Port) -> list[str | int]:
        return [rows if place == port.batch_axis else axis for place, axis in enumerate(port.shape)]

    carried: list[tuple[str, int, list[str | int]]] = [
        (one.name, helper.np_dtype_to_tensor_dtype(one.initial.dtype), [rows, *row])
        for one, row in zip(decoder.carried, parts.carried_shapes, strict=True)
    ]
    carried += [(EMITTED, TensorProto.INT64, [rows, parts.rules.history]), (NUM_EMITTED, TensorProto.INT64, [rows, 1])]
    del graph.input[:], graph.output[:]
    graph.input.extend(info(port.name, element_type(port.dtype), shape(port)) for port in ports)
    graph.input.extend(info(*one) for one in carried)
    graph.input.extend(kept)
    graph.output.append(info(OUTPUT, TensorProto.FLOAT, [rows, size_of_step(parts.capacity)]))
    graph.output.extend(info(one.output, element_type(one.input.dtype), shape(one.input)) for one in encoder.states)
    graph.output.extend(info(states[name], kind, form) for name, kind, form in carried)


def _takes_rows(network: Network) -> bool:
    """Whether a file accepts any number of rows."""
    declared = {value.name: value.type.tensor_type.shape.dim for value in network.model.graph.input}
    ports = [*network.reads.values(), *(kept.input for kept in network.states)]
    return not any(declared[port.name][port.batch_axis].HasField("dim_value") for port in ports)


def _in_opset(networks: Sequence[Network]) -> list[Network]:
    """Converts all models to one opset. Raises ExportError for a file that cannot be converted."""
    opset = max(_MIN_OPSET, *(opset_of(network.model) for network in networks))
    found = []
    for network in networks:
        model = network.model
        if opset_of(model) != opset:
            try:
                model = version_converter.convert_version(model, opset)
            except Exception as error:  # onnx raises its own error classes
                raise ExportError(
                    f"{network.file} has opset {opset_of(model)}, but cannot be converted to {opset}, which the others"
                    f" need: {first_line(error)}. Export it again with opset {opset}"
                ) from error
        found.append(replace(network, model=model))
    return found
