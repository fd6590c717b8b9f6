"""Files with branches that constants rule out, and what the proofs of a step must detect."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.repository.bundle import load_bundle
from tests.export import foreign
from tests.export.test_export_onnx import Alone, export, frames, manifest_of, refusal
from tests.reference import ReferenceSession

WIDE, NARROW = 8, 4


def branch(name: str, width: int) -> onnx.GraphProto:
    """Returns a model for frames of one width. The values of the other branch have the same names."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["looked"]),
        helper.make_node("Add", ["looked", "h"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["after"]),
        helper.make_node("Identity", ["limit"], ["cut"]),
    ]
    outputs = [helper.make_tensor_value_info(one, TensorProto.FLOAT, None) for one in ("after", "cut")]
    weights = numpy_helper.to_array(foreign.weight(name, width, 3))
    return helper.make_graph(nodes, name, [], outputs, [numpy_helper.from_array(weights, "W")])


def two_rates(path: Path) -> Path:
    """Writes a file with two models, for frames of two widths. A rate selects one of them."""
    decide = [
        helper.make_node("Constant", [], ["high"], value=numpy_helper.from_array(np.array(16000, np.int64))),
        helper.make_node("Equal", ["sr", "high"], ["is_high"]),
        helper.make_node(
            "If", ["is_high"], ["hn", "cut_off"], then_branch=branch("wide", WIDE), else_branch=branch("narrow", NARROW)
        ),
        helper.make_node("Min", ["hn", "cut_off"], ["y"]),
    ]
    inputs = [foreign.value("x", ["batch", "width"]), foreign.value("h", ["batch", 3])]
    inputs.append(foreign.value("sr", [], TensorProto.INT64))
    outputs = [foreign.value("y", ["batch", 3]), foreign.value("hn", ["batch", 3])]
    return foreign.save(path, decide, inputs, outputs, [numpy_helper.from_array(np.array(0.5, np.float32), "limit")])


@pytest.mark.parametrize(("rate", "width"), [(16000, WIDE), (8000, NARROW)])
def test_a_branch_that_a_constant_rules_out_need_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: int, width: int
) -> None:
    """The step's width fits only one branch."""
    file = two_rates(tmp_path / "rates.onnx")
    folder = export(file, tmp_path / "repository", "--constant", f"sr={rate}", "--axis", f"width={width}")
    output = capsys.readouterr().out
    assert f"sr = {rate} selects the branches that run; the others are removed" in output
    manifest = manifest_of(folder)
    assert (manifest.step.feature_size, manifest.step.constants, manifest.step.max_rows) == (width, (), None)
    assert {node.op_type for node in onnx.load(folder / "step.onnx").graph.node}.isdisjoint({"If", "Equal"})
    alone, session = Alone(file, {"h": "hn"}, sr=np.array(rate, np.int64)), ReferenceSession(folder)
    for frame in frames(6, width):
        assert session.step(frame).tobytes() == alone.step("y", x=frame[np.newaxis]).tobytes()
    assert load_bundle(folder).manifest == manifest


def test_a_state_that_nothing_depends_on_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["y"]),
        helper.make_node("Mul", ["h", "zero"], ["none"]),
        helper.make_node("Add", ["y", "none"], ["hn"]),
    ]
    weights = [foreign.weight("W", 4, 3), numpy_helper.from_array(np.array(0.0, np.float32), "zero")]
    inputs = [foreign.value("x", ["batch", 4]), foreign.value("h", ["batch", 3])]
    outputs = [foreign.value("y", ["batch", 3]), foreign.value("hn", ["batch", 3])]
    file = foreign.save(tmp_path / "useless.onnx", nodes, inputs, outputs, weights)
    found = refusal(capsys, file, tmp_path / "repository")
    assert "no output depends on h: the file keeps its state elsewhere" in found


def test_a_zero_keeps_its_sign_past_the_end_of_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The states contain -0, which ONNX Runtime's `Where` changes to 0."""
    nodes = [
        helper.make_node("Mul", ["x", "minus"], ["turned"]),
        helper.make_node("Add", ["turned", "h"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["kept"]),
        helper.make_node("Neg", ["kept"], ["hn"]),  # -0 wherever the sum was below 0
        helper.make_node("Identity", ["sum"], ["y"]),
    ]
    inputs = [foreign.value("x", ["batch", 2]), foreign.value("h", ["batch", 2])]
    outputs = [foreign.value("y", ["batch", 2]), foreign.value("hn", ["batch", 2])]
    weights = [numpy_helper.from_array(np.array(-1.0, np.float32), "minus")]
    export(foreign.save(tmp_path / "signs.onnx", nodes, inputs, outputs, weights), tmp_path / "repository")
    assert "several steps of a session run at once, with the same bits as one by one" in capsys.readouterr().out
