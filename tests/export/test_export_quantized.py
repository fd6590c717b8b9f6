"""Files whose rows or steps change each other, because a scale is computed over a whole run.

The command names the cause and the consequence. The server returns what the file returns for one row and one step.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from tests.export import foreign, foreign_states
from tests.export.test_export_onnx import Alone, export, frames, manifest_of, refusal
from tests.export.test_export_over_time import plain
from tests.reference import ReferenceSession


def quantized(file: Path, *kinds: str) -> Path:
    """Writes a copy of the file, quantized dynamically with ONNX Runtime's own tool. Returns its path."""
    to = file.with_stem(f"{file.stem}-int8")
    quantize_dynamic(file, to, weight_type=QuantType.QInt8, op_types_to_quantize=list(kinds))
    return to


@pytest.mark.parametrize(("kind", "name"), [("LSTM", "DynamicQuantizeLSTM"), ("MatMul", "DynamicQuantizeLinear")])
def test_rows_that_share_a_scale_are_run_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, name: str
) -> None:
    make = foreign_states.lstm_step if kind == "LSTM" else foreign_states.plain_cell
    file = quantized(make(tmp_path / "file.onnx"), kind)
    folder = export(file, tmp_path / "repository")
    output = capsys.readouterr().out
    assert f"sessions run one by one, because other rows in a run change a row's output: {name}" in output
    assert "is quantized dynamically: its scale is taken over all rows of a run, so that each row changes" in output
    assert "Export the module without dynamic quantization" in output
    assert manifest_of(folder).step.max_rows == 1
    states = {"hx": "hy", "cx": "cy"} if kind == "LSTM" else {"p": "u"}
    alone, session = Alone(file, states), ReferenceSession(folder)
    for frame in frames(5, manifest_of(folder).step.feature_size):
        x = frame.reshape(1, 1, -1) if kind == "LSTM" else frame.reshape(1, -1)
        assert session.step(frame).tobytes() == alone.step("y", x=x).tobytes()


@pytest.mark.parametrize("kind", ["LSTM", "DynamicQuantizeLinear"])
def test_steps_that_share_a_scale_are_refused_with_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """A run of several steps then proves nothing. The message names the cause, and the flag that skips this
    comparison."""
    if kind == "LSTM":
        file = quantized(plain(tmp_path / "file.onnx"), kind)
    else:
        file = quantized(foreign_states.two_grus(tmp_path / "file.onnx", begins=True, ends=True), "MatMul")
    found = refusal(capsys, file, tmp_path / "repository")
    time = "T" if kind == "LSTM" else "time"
    assert "is quantized dynamically: its scale is taken over all steps of a run, so that each step changes" in found
    assert f"Serve it one step at a time with --axis {time}=1, which leaves this comparison out" in found
    folder = export(file, tmp_path / "repository", "--axis", f"{time}=1")
    assert manifest_of(folder).step.max_rows == 1


@pytest.mark.parametrize("rows", [1, "batch"])
@pytest.mark.parametrize("keeps", [True, False], ids=["[3]", "[]"])
@pytest.mark.parametrize("is_told", [True, False])
def test_an_output_without_an_axis_for_rows_is_served_row_by_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: int | str, keeps: bool, is_told: bool
) -> None:
    last = helper.make_node("Squeeze" if keeps else "ReduceMean", ["hn", "zero"] if keeps else ["hn"], ["y"])
    if not keeps:
        last.attribute.append(helper.make_attribute("keepdims", 0))
    nodes = [helper.make_node("Add", ["h", "x"], ["hn"]), last]
    inputs = [foreign.value("x", [rows, 3]), foreign.value("h", [rows, 3])]

    shape = [3] if keeps else []
    outputs = [foreign.value("y", shape if is_told else ["any"]), foreign.value("hn", [rows, 3])]
    zero = numpy_helper.from_array(np.array([0], np.int64), "zero")
    file = foreign.save(tmp_path / "file.onnx", nodes, inputs, outputs, [zero] if keeps else [])
    folder = export(file, tmp_path / "repository")
    output = capsys.readouterr().out
    assert manifest_of(folder).step.max_rows == 1
    if rows == "batch" and is_told:
        assert f"y float32 {'[3]' if keeps else '[]'} has no batch axis. Export it with one" in output
    alone, session = Alone(file, {"h": "hn"}), ReferenceSession(folder)
    for frame in frames(4, 3):
        assert session.step(frame).tobytes() == alone.step("y", x=frame[np.newaxis]).tobytes()
