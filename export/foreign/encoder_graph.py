"""Wraps a translator's encoder for a bundle, where sources come padded, with their lengths.

`together` runs the file once for all rows, if the file can do so. `apart` is a `Loop` that cuts each row to its length
and runs it alone, as the file's author does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import ExportError
from export.foreign.encoder_file import EncoderFile
from export.foreign.links import Placed
from export.graphs import serialize
from export.proofs.runners import Array
from export.surgery import Writer, copy_of, element_type
from service.repository.manifest import TensorSpec

SOURCE, LENGTHS = "carousel/source", "carousel/source_lengths"


@dataclass(frozen=True, slots=True)
class Use:
    """How the bundle uses an output of the file. tensor: of the bundle's encoder; a context has a source axis."""

    output: str
    tensor: TensorSpec

    @property
    def is_context(self) -> bool:
        """Whether it has a source axis."""
        return "source" in self.tensor.shape

    @property
    def row_shape(self) -> list[int]:
        """Its sizes without the batch and source axes."""
        return [axis for axis in self.tensor.shape if isinstance(axis, int)]


def together(encoder: EncoderFile, uses: Sequence[Use], length_name: str | None) -> bytes:
    """Returns a graph that encodes all rows in one run.

    length_name: the name of an output for the lengths; None: none. Raises ExportError if the file has no batch axis.
    """
    model, nodes, writer = _begin(encoder, uses, length_name)
    source = encoder.source
    if source.rows is None or encoder.has_fixed_row or any(encoder.outputs[use.output].rows is None for use in uses):
        raise ExportError("the file takes one row")
    if any(isinstance(axis, str) for name in encoder.constants for axis in encoder.inputs[name].shape):
        raise ExportError("a constant has a batch axis")
    turned(writer, SOURCE, source.perm, "carousel/turned")
    writer.node("Cast", ["carousel/turned"], source.tensor.name, to=element_type(source.tensor.dtype))
    if encoder.lengths is not None:
        shape = writer.constant("lengths/shape", np.array([-1, *[1] * (len(encoder.lengths.shape) - 1)], np.int64))
        writer.node("Reshape", [LENGTHS, shape], "carousel/lengths/shaped")
        writer.node("Cast", ["carousel/lengths/shaped"], encoder.lengths.name, to=element_type(encoder.lengths.dtype))
    are_tokens(writer, SOURCE, LENGTHS, "carousel/are_tokens")
    for mask in encoder.masks:
        made_mask(writer, "carousel/are_tokens", mask.at_tokens, mask.behind, mask.placed)
    model.graph.node.extend(nodes)
    for use in uses:
        placed, name = encoder.outputs[use.output], use.tensor.name
        turned(writer, use.output, placed.places, f"{name}/rows_first")
        if use.is_context:
            _clean(writer, f"{name}/rows_first", use)
        else:
            shape = writer.constant(f"{name}/shape", np.array([0, *use.row_shape], np.int64))
            writer.node("Reshape", [f"{name}/rows_first", shape], f"{name}/shaped")
            _rows_placed(writer, f"{name}/shaped", use)
    return serialize(model)


def apart(encoder: EncoderFile, uses: Sequence[Use], length_name: str | None) -> bytes:
    """Returns a graph that encodes each row alone, at its own length. length_name: see `together`."""
    model, nodes, writer = _begin(encoder, uses, length_name)
    body = helper.make_graph([], "row", [], [])
    inside = Writer(body, "carousel/row/")
    zero, one = (writer.constant(name, np.array([value], np.int64)) for name, value in (("zero", 0), ("one", 1)))
    source = encoder.source
    inside.node("Gather", [LENGTHS, "carousel/row/number"], "carousel/row/scalar_length", axis=0)
    inside.node("Reshape", ["carousel/row/scalar_length", one], "carousel/row/length")
    inside.node("Gather", [SOURCE, "carousel/row/number"], "carousel/row/padded", axis=0)
    inside.node("Slice", ["carousel/row/padded", zero, "carousel/row/length", zero], "carousel/row/source")
    shape = [1 if at == source.rows else -1 if at == source.source else 0 for at in range(len(source.places))]
    for at, size in zip([at for at in range(len(shape)) if not shape[at]], source.shape, strict=True):
        shape[at] = size
    form = writer.constant("row_shape", np.array(shape, np.int64))
    inside.node("Reshape", ["carousel/row/source", form], "carousel/row/shaped")
    inside.node("Cast", ["carousel/row/shaped"], source.tensor.name, to=element_type(source.tensor.dtype))
    if encoder.lengths is not None:
        form = writer.constant("length_shape", np.ones(len(encoder.lengths.shape), np.int64))
        inside.node("Reshape", ["carousel/row/length", form], "carousel/row/shaped_length")
        inside.node(
            "Cast", ["carousel/row/shaped_length"], encoder.lengths.name, to=element_type(encoder.lengths.dtype)
        )
    for mask in encoder.masks:
        sized_mask(inside, mask.at_tokens, mask.placed, one, "carousel/row/length")
    body.node.extend(nodes)
    writer.node("Shape", [SOURCE], "carousel/shape")
    writer.node("Gather", ["carousel/shape", one], "carousel/width", axis=0)
    outputs = []
    for use in uses:
        placed, name = encoder.outputs[use.output], f"{use.tensor.name}/row"
        turned(inside, use.output, placed.places, f"{name}/turned")
        rest = [-1, *placed.shape] if use.is_context else use.row_shape
        inside.node(
            "Reshape", [f"{name}/turned", writer.constant(f"{name}/rest", np.array(rest, np.int64))], f"{name}/own"
        )
        if use.is_context:
            sizes = writer.constant(f"{name}/sizes", np.array(placed.shape, np.int64))
            nothing = writer.constant(f"{name}/zero", np.array(0, use.tensor.dtype))
            inside.node("Sub", ["carousel/width", "carousel/row/length"], f"{name}/behind")
            inside.node("Concat", [f"{name}/behind", sizes], f"{name}/behind_shape", axis=0)
            inside.node("Expand", [nothing, f"{name}/behind_shape"], f"{name}/zeros")
            inside.node("Concat", [f"{name}/own", f"{name}/zeros"], f"{name}/whole", axis=0)
        outputs.append((f"{name}/whole" if use.is_context else f"{name}/own", use))
    body.input.append(helper.make_tensor_value_info("carousel/row/number", TensorProto.INT64, []))
    body.input.append(helper.make_tensor_value_info("carousel/row/goes_on", TensorProto.BOOL, []))
    inside.node("Identity", ["carousel/row/goes_on"], "carousel/row/still_goes_on")
    body.output.append(helper.make_tensor_value_info("carousel/row/still_goes_on", TensorProto.BOOL, []))
    for name, use in outputs:
        row: list[str | int] = [f"{use.tensor.name}/width", *use.row_shape] if use.is_context else [*use.row_shape]
        body.output.append(helper.make_tensor_value_info(name, element_type(use.tensor.dtype), row))
    writer.node("Shape", [LENGTHS], "carousel/lengths_shape")
    first = writer.constant("first", np.array(0, np.int64))
    writer.node("Gather", ["carousel/lengths_shape", first], "carousel/num_rows", axis=0)
    given = [use.tensor.name if use.is_context else f"{use.tensor.name}/rows" for use in uses]
    goes_on = writer.constant("goes_on", np.array(True))
    writer.node("Loop", ["carousel/num_rows", goes_on], *given, body=body)
    for use in uses:
        if not use.is_context:
            _rows_placed(writer, f"{use.tensor.name}/rows", use)
    return serialize(model)


def are_tokens(writer: Writer, wide: str, lengths: str, name: str) -> None:
    """Writes where each row has tokens, bool [batch, source]. wide: a tensor whose second axis is the source."""
    zero, one = (writer.constant(f"{name}/{value}", np.array(value, np.int64)) for value in (0, 1))
    column = writer.constant(f"{name}/column", np.array([-1, 1], np.int64))
    writer.node("Shape", [wide], f"{name}/shape")
    writer.node("Gather", [f"{name}/shape", one], f"{name}/width", axis=0)
    writer.node("Range", [zero, f"{name}/width", one], f"{name}/places")
    writer.node("Reshape", [lengths, column], f"{name}/ends")
    writer.node("Less", [f"{name}/places", f"{name}/ends"], name)


def made_mask(writer: Writer, tokens: str, at_tokens: Array, behind: Array, placed: Placed) -> None:
    """Writes a mask for rows of different lengths. tokens: the output of `are_tokens`."""
    name, dtype = placed.tensor.name, placed.tensor.dtype
    if dtype == "bool":
        writer.node("Identity" if at_tokens else "Not", [tokens], f"carousel/{name}/plain")
    else:
        ones, least = f"carousel/{name}/ones", writer.constant(f"{name}/behind", behind)
        writer.node("Cast", [tokens], ones, to=element_type(dtype))
        writer.node("Mul", [ones, writer.constant(f"{name}/above", at_tokens - behind)], f"{ones}/scaled")
        writer.node("Add", [f"{ones}/scaled", least], f"carousel/{name}/plain")
    shape = writer.constant(f"{name}/mask_shape", np.array([0, 0, *placed.shape], np.int64))
    writer.node("Reshape", [f"carousel/{name}/plain", shape], f"carousel/{name}/shaped")
    turned(writer, f"carousel/{name}/shaped", placed.perm, name)


def sized_mask(writer: Writer, at_tokens: Array, placed: Placed, rows: str, length: str) -> None:
    """Writes a mask for rows of one length: it has only the value of tokens. rows, length: their numbers, [1] each."""
    name = placed.tensor.name
    value = writer.constant(f"{name}/at", at_tokens)
    one = writer.constant(f"{name}/single", np.array([1], np.int64))
    sizes = [rows if at == placed.rows else length if at == placed.source else one for at in range(len(placed.places))]
    writer.node("Concat", sizes, f"carousel/{name}/size", axis=0)
    writer.node("Expand", [value, f"carousel/{name}/size"], name)


def _begin(
    encoder: EncoderFile, uses: Sequence[Use], length_name: str | None
) -> tuple[onnx.ModelProto, list[onnx.NodeProto], Writer]:
    """Returns a model with the bundle's inputs and outputs, the file's weights and no nodes; the nodes; a writer."""
    model = copy_of(encoder.model)
    graph = model.graph
    nodes = list(graph.node)
    weights = {one.name for one in graph.initializer}
    kept = [one for one in graph.input if one.name in weights]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    features = [encoder.feature_size] if encoder.feature_size else []
    kind = TensorProto.FLOAT if features else TensorProto.INT64
    graph.input.append(helper.make_tensor_value_info(SOURCE, kind, ["batch", "source", *features]))
    graph.input.append(helper.make_tensor_value_info(LENGTHS, TensorProto.INT64, ["batch"]))
    graph.input.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in encoder.constants.items())
    writer = Writer(graph, "carousel/")
    for use in uses:
        shape = list(use.tensor.shape)
        graph.output.append(helper.make_tensor_value_info(use.tensor.name, element_type(use.tensor.dtype), shape))
    if length_name is not None:
        writer.node("Identity", [LENGTHS], length_name)
        graph.output.append(helper.make_tensor_value_info(length_name, TensorProto.INT64, ["batch"]))
    return model, nodes, writer


def turned(writer: Writer, name: str, perm: Sequence[int], output: str) -> None:
    """Writes a tensor with its axes in another order, or in the same."""
    if list(perm) == sorted(perm):
        writer.node("Identity", [name], output)
    else:
        writer.node("Transpose", [name], output, perm=list(perm))


def _clean(writer: Writer, name: str, use: Use) -> None:
    """Writes zeros past each row's source, with a product, which keeps the sign of a zero."""
    own = use.tensor.name
    shape = writer.constant(f"{own}/column", np.array([0, 0, *[1] * len(use.row_shape)], np.int64))
    writer.node("Reshape", ["carousel/are_tokens", shape], f"{own}/are_tokens")
    if use.tensor.dtype == "bool":
        writer.node("And", [name, f"{own}/are_tokens"], own)
        return
    writer.node("Cast", [f"{own}/are_tokens"], f"{own}/ones", to=element_type(use.tensor.dtype))
    writer.node("Mul", [name, f"{own}/ones"], own)


def _rows_placed(writer: Writer, name: str, use: Use) -> None:
    """Moves the batch axis from the first place to its place in the state."""
    axis = use.tensor.shape.index("batch")
    perm = [*range(1, len(use.tensor.shape))]
    perm.insert(axis, 0)
    turned(writer, name, perm, use.tensor.name)
