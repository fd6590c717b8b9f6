"""States that have a default value in the file are states. They do not get this value in every step."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.export import foreign, foreign_states
from tests.export.test_export_onnx import Alone, export, frames, manifest_of
from tests.reference import ReferenceSession


def with_defaults(file: Path, *names: str, value: float = 0.0) -> Path:
    """Writes a copy of the file in which some inputs have a default value, for one row. Returns its path."""
    model = onnx.load(file)
    for one in model.graph.input:
        if one.name in names:
            shape = [axis.dim_value or 1 for axis in one.type.tensor_type.shape.dim]
            model.graph.initializer.append(numpy_helper.from_array(np.full(shape, value, np.float32), one.name))
    to = file.with_stem(f"{file.stem}-defaults")
    onnx.save(model, to)
    return to


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_states_of_a_recurrent_node_are_found_by_the_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    plain = foreign_states.lstm_step(tmp_path / "lstm.onnx", begins=("p", "q"), ends=("u", "v"))
    folder = export(with_defaults(plain, "p", "q", value=value), tmp_path / "repository")
    begins = "its first value is that" if value else "its first value is zero"
    assert f"input p has a default value in the file and is a state: {begins}\n" in capsys.readouterr().out
    assert {one.input.name: one.output for one in manifest_of(folder).states} == {"p": "u", "q": "v"}
    alone, session = Alone(plain, {"p": "u", "q": "v"}, initial=value), ReferenceSession(folder)
    for frame in frames(4, 4):
        assert session.step(frame).tobytes() == alone.step("y", x=frame.reshape(1, 1, -1)).tobytes()


def cell(path: Path, name: str) -> Path:
    """Writes a model that keeps a sum. The file lists a weight as an input, as old exporters do."""
    shape: foreign.Shape = ["batch", 3]
    nodes = [
        helper.make_node("Add", [name, "x"], ["sum"]),
        helper.make_node("Mul", ["sum", "w"], [f"{name}_out"]),
        helper.make_node("Tanh", [f"{name}_out"], ["y"]),
    ]
    inputs = [foreign.value("x", shape), foreign.value(name, shape), foreign.value("w", [1, 3])]
    outputs = [foreign.value("y", shape), foreign.value(f"{name}_out", shape)]
    return foreign.save(path, nodes, inputs, outputs, [foreign.weight("w", 1, 3)])


def test_states_with_similar_names_are_found_and_weights_stay(tmp_path: Path) -> None:
    folder = export(with_defaults(cell(tmp_path / "cell.onnx", "h"), "h"), tmp_path / "repository")
    manifest = manifest_of(folder)
    assert [(one.input.name, one.output) for one in manifest.states] == [("h", "h_out")]
    assert manifest.step.feature_size == 3


def test_an_input_with_a_default_value_gets_a_note_or_a_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(cell(tmp_path / "cell.onnx", "h"))
    model.graph.node.append(helper.make_node("Add", ["y", "bias"], ["shown"]))
    model.graph.input.append(foreign.value("bias", ["batch", 3]))
    model.graph.initializer.append(numpy_helper.from_array(np.full((1, 3), 0.25, np.float32), "bias"))
    model.graph.output[0].CopyFrom(foreign.value("shown", ["batch", 3]))
    onnx.save(model, tmp_path / "cell.onnx")
    export(tmp_path / "cell.onnx", tmp_path / "left")
    message = "input bias keeps its default value: use --input bias or --state bias=OUTPUT to change that"
    assert message in capsys.readouterr().out
    folder = export(tmp_path / "cell.onnx", tmp_path / "told", "--input", "x", "--input", "bias")
    assert message not in capsys.readouterr().out
    assert [port.name for port in manifest_of(folder).step.inputs] == ["x", "bias"]
    for number, value in enumerate((0.25, 0.5)):
        folder = export(tmp_path / "cell.onnx", tmp_path / f"constant{number}", "--constant", f"bias={value}")
        session = ReferenceSession(folder)
        assert session.step(np.zeros(3, np.float32)).tolist() == [value] * 3
