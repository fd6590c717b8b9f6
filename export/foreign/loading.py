"""Loads an ONNX file whole, or refuses it with a message that says what the file is and what to do.

Runs nothing, and does not ask what inputs and outputs mean. Checks that there is a valid graph whose inputs and outputs
are tensors with a known number of axes, that all weights are in the file or next to it, and that ONNX Runtime has all
operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from export.errors import ExportError, first_line
from export.surgery import graphs_in, nodes_in, opset_of

_MIN_IR = 4
"""The first version in which a weight need not be an input; weights that the exporter adds are none."""
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.experimental", "com.microsoft.nchwc")
"""Domains of the operators that ONNX Runtime has."""
_AGAIN = "Copy or download the file again"
_BEGINNINGS = (
    (b"version https://git-lfs", "it is a pointer of Git LFS. Fetch the file itself with git lfs pull"),
    (b"PK\x03\x04", "it is a zip archive, as PyTorch writes them. Export the module with torch.onnx.export"),
    (b"\x80", "it is a pickle, as PyTorch writes them. Export the module with torch.onnx.export"),
    (b"\x89HDF", "it is an HDF5 file, as Keras writes them. Convert it with tf2onnx"),
)
"""First bytes of other kinds of files, and what to do."""


def load(file: Path) -> onnx.ModelProto:
    """Returns the model in a file, with IR version 4 or later. Raises ExportError that says what is wrong and what
    to do."""
    model = _parsed(file)
    _check_weights(file, model)
    try:
        onnx.load_external_data_for_model(model, str(file.parent))
        _name_shapes(model)
        onnx.checker.check_model(model)
    except ExportError:
        raise
    except Exception as error:  # onnx raises its own error classes
        raise ExportError(f"{file} is not a valid ONNX model: {first_line(error)}. Export it again") from error
    _check_operators(model)
    model.ir_version = max(model.ir_version, _MIN_IR)
    return model


def _parsed(file: Path) -> onnx.ModelProto:
    if not file.exists():
        raise ExportError(f"{file} does not exist")
    if file.is_dir():
        inside = ", ".join(sorted(one.name for one in file.glob("*.onnx"))[:4])
        raise ExportError(f"{file} is a folder: give an .onnx file" + (f" in it: {inside}" if inside else ""))
    if not file.is_file():
        raise ExportError(f"{file} is not a regular file")
    content = file.read_bytes()
    if not content:
        raise ExportError(f"{file} is empty. {_AGAIN}")
    for beginning, what in _BEGINNINGS:
        if content.startswith(beginning):
            raise ExportError(f"{file} is not an ONNX model: {what}")
    if content[4:8] == b"ORTM":
        raise ExportError(f"{file} is not an ONNX model: it has ONNX Runtime's own format. Give the .onnx file")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf raises its own error classes
        is_text = all(byte in b"\t\n\r" or byte >= 0x20 for byte in content[:256])
        what = "it is text" if is_text else f"its {len(content):,} bytes are truncated, or not an ONNX model"
        raise ExportError(f"{file} is not an ONNX model: {what}. {_AGAIN}") from error
    if not model.ir_version or not model.HasField("graph"):
        raise ExportError(f"{file} is not an ONNX model: it has no graph. {_AGAIN}")
    for what, version, known in (
        ("IR version", model.ir_version, onnx.IR_VERSION),
        ("opset", opset_of(model), onnx.defs.onnx_opset_version()),
    ):
        if version > known:
            raise ExportError(
                f"{file} has {what} {version}, but onnx {onnx.__version__} supports up to {known}: export it with an"
                " earlier one, or install newer packages onnx and onnxruntime"
            )
    _check_values(model)
    return model


def check_opset(file: str, opset: int, least: int) -> None:
    """Raises ExportError for a file whose opset is too old for the nodes that are added to it."""
    if opset < least:
        raise ExportError(
            f"{file} has opset {opset}, but {least} or later is needed: convert it first, with"
            " onnx.version_converter.convert_version"
        )


def _check_values(model: onnx.ModelProto) -> None:
    """Raises ExportError for inputs and outputs that are no tensors; removes negative sizes."""
    graph = model.graph
    weights = {one.name for one in graph.initializer}
    for what, values in (("input", graph.input), ("output", graph.output)):
        if not [one for one in values if one.name not in weights]:
            raise ExportError(f"the file's graph has no {what}s: export the module with them")
        for one in values:
            kind = one.type.WhichOneof("value")
            if kind not in ("tensor_type", None):
                raise ExportError(
                    f"the {what} {one.name} has the type {kind.removesuffix('_type').replace('_', ' ')}, but only"
                    " tensors are served. Export the module without it"
                )
            if kind is None or not one.type.tensor_type.elem_type:
                raise ExportError(f"the {what} {one.name} has no type. Export the module again, with typed {what}s")
            for place, axis in enumerate(one.type.tensor_type.shape.dim):
                if axis.HasField("dim_value") and axis.dim_value < 0:  # some exporters write -1 for any size
                    axis.Clear()
                elif axis.HasField("dim_value") and not axis.dim_value:
                    raise ExportError(
                        f"axis {place} of the {what} {one.name} has the size 0. Export the module with the size that it"
                        " has in a step, or without one"
                    )


def _check_weights(file: Path, model: onnx.ModelProto) -> None:
    """Raises ExportError for weights in other files that are missing or too short."""
    for tensor in _tensors(model.graph):
        if not uses_external_data(tensor):
            continue
        data = ExternalDataInfo(tensor)
        place = file.parent / data.location
        if Path(data.location).is_absolute() or ".." in Path(data.location).parts:
            raise ExportError(
                f"{file} keeps its weights in {data.location!r}, outside its folder. Save it again with its weights"
                " beside it, or in it: onnx.save(onnx.load(FILE), NEW_FILE)"
            )
        if not place.is_file():
            raise ExportError(
                f"{file} keeps its weights in {data.location}, which does not exist. Copy that file into {file.parent},"
                " under that name"
            )
        needed = (data.offset or 0) + (data.length or 0)
        if place.stat().st_size < needed:
            raise ExportError(
                f"{place} has {place.stat().st_size:,} bytes, but {file.name} needs {needed:,} of it: it is truncated,"
                f" or belongs to another model. {_AGAIN}"
            )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yields the tensors of a graph and of the graphs inside it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
        for inner in graphs_in(node):
            yield from _tensors(inner)


def _name_shapes(model: onnx.ModelProto) -> None:
    """Adds the shapes of outputs if the file omits them. Raises ExportError for shapes that stay unknown."""
    for what, values in (("input", model.graph.input), ("output", model.graph.output)):
        unknown = [one for one in values if not one.type.tensor_type.HasField("shape")]
        if what == "output" and unknown:
            inferred = {one.name: one for one in onnx.shape_inference.infer_shapes(model).graph.output}
            for one in unknown:
                one.type.CopyFrom(inferred[one.name].type)
            unknown = [one for one in unknown if not one.type.tensor_type.HasField("shape")]
        if unknown:
            raise ExportError(
                f"the number of axes of the {what} {unknown[0].name} is not in the file. Export the module with a shape"
                " for it, in which axes may have names in place of sizes"
            )


def _check_operators(model: onnx.ModelProto) -> None:
    """Raises ExportError for operators that ONNX Runtime does not have."""
    own = {(one.domain, one.name) for one in model.functions}
    for node in nodes_in(model.graph):
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own:
            raise ExportError(
                f"the file has the operator {node.domain}.{node.op_type}, which ONNX Runtime does not have. Export the"
                " module without it, with standard operators only"
            )
