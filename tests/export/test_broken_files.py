"""Files that are not an ONNX step, or only a part of one, are refused with one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.export import foreign
from tests.export.test_export_onnx import export, manifest_of, refusal

Change = Callable[[onnx.ModelProto], object]


def model(path: Path) -> onnx.ModelProto:
    """Returns a model that keeps a sum and multiplies it by a weight."""
    nodes = [
        helper.make_node("Add", ["h", "x"], ["hn"]),
        helper.make_node("Mul", ["hn", "w"], ["y"]),
    ]
    shape: foreign.Shape = ["batch", 3]
    inputs, outputs = (
        [foreign.value(name, shape) for name in "xh"],
        [foreign.value(name, shape) for name in ("y", "hn")],
    )
    return onnx.load(foreign.save(path, nodes, inputs, outputs, [foreign.weight("w", 3)]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty. Copy or download the file again"),
        (b"<html>404</html>\n", "is not an ONNX model: it is text. Copy or download the file again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS. Fetch the file itself with git"),
        (
            b"PK\x03\x04archive/data.pkl",
            "it is a zip archive, as PyTorch writes them. Export the module with torch.onn",
        ),
        (b"\x1c\0\0\0ORTM\0\0", "it has ONNX Runtime's own format. Give the .onnx file"),
        (bytes(300), "is not an ONNX model: its 300 bytes are truncated, or not an ONNX model"),
        (None, "bytes are truncated, or not an ONNX model. Copy or download the file again"),
    ],
    ids=["empty", "text", "pointer", "checkpoint", "ORT", "zeros", "cut off"],
)
def test_a_file_that_is_not_a_model_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    file = tmp_path / "file.onnx"
    file.write_bytes(model(tmp_path / "whole").SerializeToString()[:-20] if content is None else content)
    assert message in refusal(capsys, file, tmp_path / "repository")


def test_a_folder_is_refused_with_the_files_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model(tmp_path / "a.onnx")
    found = refusal(capsys, tmp_path, tmp_path / "repository")
    assert "is a folder: give an .onnx file in it: a.onnx" in found


def _kind(kind: onnx.TypeProto) -> Change:
    """Returns a change of the type of x."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.CopyFrom(kind)

    return change


def _tensor(kind: int, shape: foreign.Shape | None = ("batch", 3)) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(kind, shape)


def _node(op_type: str, domain: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node(op_type, ["x"], ["more"], domain=domain))
        model.opset_import.append(helper.make_opsetid(domain, 1 if domain else 16))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model: model.graph.ClearField("node") or model.graph.ClearField("input"),
            "has no inputs: export the mo",
        ),
        (lambda model: setattr(model, "ir_version", 99), "has IR version 99, but onnx"),
        (lambda model: setattr(model.opset_import[0], "version", 99), "has opset 99, but onnx"),
        (
            lambda model: setattr(model.opset_import[0], "version", 5),
            "has opset 5, but 7 or later is needed: convert it",
        ),
        (
            _kind(helper.make_sequence_type_proto(_tensor(1))),
            "the input x has the type sequence, but only tensors a",
        ),
        (
            _kind(helper.make_optional_type_proto(_tensor(1))),
            "the input x has the type optional, but only tensors a",
        ),
        (_kind(onnx.TypeProto()), "the input x has no type. Export the module again, with typed inputs"),
        (_kind(_tensor(1, None)), "the number of axes of the input x is not in the file"),
        (_kind(_tensor(1, ["batch", 0])), "axis 1 of the input x has the size 0. Export the module with the size"),
        (_node("Own", "of.mine"), "the file has the operator of.mine.Own, which ONNX Runtime does not have"),
        (_node("Addd", ""), "is not a valid ONNX model: No Op registered for Addd"),
        (lambda model: model.graph.node.pop(0), "is not a valid ONNX model: Nodes in a graph must be topologically s"),
    ],
)
def test_a_model_that_is_not_a_step_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, message: str
) -> None:
    changed = model(tmp_path / "file.onnx")
    change(changed)
    (tmp_path / "file.onnx").write_bytes(changed.SerializeToString())
    found = refusal(capsys, tmp_path / "file.onnx", tmp_path / "repository")
    assert message in found
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize("kind", ["STRING", "FLOAT8E4M3FN", "BFLOAT16", "UINT8", "COMPLEX64"])
def test_types_that_are_not_served_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    file = tmp_path / "file.onnx"
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Neg", ["h"], ["hn"])]
    number = TensorProto.DataType.Value(kind)
    inputs = [foreign.value("x", ["batch", 3], number), foreign.value("h", ["batch", 3])]
    outputs = [foreign.value("y", ["batch", 3], number), foreign.value("hn", ["batch", 3])]
    foreign.save(file, nodes, inputs, outputs, [], 20)
    found = refusal(capsys, file, tmp_path / "repository")
    assert (
        f"x has the type {kind}: only bool, float16, float32, float64, int32, int64 are served. Export the module"
    ) in found


@pytest.mark.parametrize(
    ("location", "size", "message"),
    [
        ("w.data", None, "keeps its weights in w.data, which does not exist. Copy that file into"),
        ("w.data", 4, "w.data has 4 bytes, but file.onnx needs 12 of it: it is truncated, or belongs to another model"),
        ("../w.data", 12, "keeps its weights in '../w.data', outside its folder. Save it again"),
    ],
)
def test_weights_that_are_not_beside_it_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], location: str, size: int | None, message: str
) -> None:
    changed, file = model(tmp_path / "file.onnx"), tmp_path / "file.onnx"
    weight = changed.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", "12")):
        weight.external_data.add(key=key, value=value)
    if size is not None:
        (tmp_path / "w.data").write_bytes(bytes(size))
    file.write_bytes(changed.SerializeToString())
    assert message in refusal(capsys, file, tmp_path / "repository")


def test_weights_beside_it_are_read(tmp_path: Path) -> None:
    whole = model(tmp_path / "file.onnx")
    onnx.save(whole, tmp_path / "file.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    assert (tmp_path / "w.data").is_file()
    export(tmp_path / "file.onnx", tmp_path / "repository")


@pytest.mark.parametrize("shapes", ["weights are inputs", "outputs without shapes", "axes of size -1"])
def test_what_old_exporters_write_is_served(tmp_path: Path, shapes: str) -> None:
    old = model(tmp_path / "file.onnx")
    if shapes == "weights are inputs":  # as in files before IR version 4
        old.ir_version, old.opset_import[0].version = 3, 8
        old.graph.input.append(foreign.value("w", [3]))
    elif shapes == "outputs without shapes":
        for one in old.graph.output:
            one.type.tensor_type.ClearField("shape")
    else:
        for one in (*old.graph.input, *old.graph.output):
            one.type.tensor_type.shape.dim[0].dim_value = -1
    (tmp_path / "file.onnx").write_bytes(old.SerializeToString())
    folder = export(tmp_path / "file.onnx", tmp_path / "repository")
    assert (manifest_of(folder).step.feature_size, manifest_of(folder).step.max_rows) == (3, None)


def test_a_sparse_weight_is_served(tmp_path: Path) -> None:
    changed = model(tmp_path / "file.onnx")
    weight = numpy_helper.to_array(changed.graph.initializer.pop())
    values = numpy_helper.from_array(weight[:2], "w")
    places = numpy_helper.from_array(np.array([0, 1], np.int64), "w_places")
    changed.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [3]))
    (tmp_path / "file.onnx").write_bytes(changed.SerializeToString())
    export(tmp_path / "file.onnx", tmp_path / "repository")
