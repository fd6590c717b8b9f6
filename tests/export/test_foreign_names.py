"""Tensors of any name: flags use the names in the file, and bundles have names that the API accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from onnx import helper

from export.foreign.names import plain_names
from tests.export import foreign
from tests.export.test_export_onnx import export, manifest_of, refusal
from tests.reference import ReferenceSession


def two_sums(path: Path, first: str, second: str, *ends: str, shows: str = "y") -> Path:
    """Writes a model with two states, to which the input is added."""
    nodes = [
        helper.make_node("Add", [first, "x"], [ends[0]]),
        helper.make_node("Mul", [second, "x"], ["by"]),
        helper.make_node("Add", ["by", "x"], [ends[1]]),
        helper.make_node("Sub", list(ends), [shows]),
    ]
    shape: foreign.Shape = ["batch", 3]
    inputs = [foreign.value(name, shape) for name in ("x", first, second)]
    return foreign.save(path, nodes, inputs, [foreign.value(name, shape) for name in (shows, *ends)], [])


def test_names_in_a_manifest_are_plain_and_distinct() -> None:
    long = "a" * 80
    names = ["h:0", "h/0", "h_0", "", ".x", "-", "été", long, f"{long}b", "x.y-z"]
    found = plain_names(names)
    assert found[:7] == ["h_0", "h_0_2", "h_0_3", "_", "_.x", "_-", "_t_"]
    assert found[7:] == [long[:64], f"{long[:62]}_2", "x.y-z"]


def test_states_with_the_same_plain_name_get_distinct_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = two_sums(tmp_path / "file.onnx", "s:0", "s/0", "t:0", "t/0")
    folder = export(file, tmp_path / "repository", "--state", "s:0=t:0", "--state", "s/0=t/0")
    assert [state.name for state in manifest_of(folder).states] == ["s_0", "s_0_2"]
    output = capsys.readouterr().out
    assert "state s:0 is named s_0 in the bundle and its API" in output
    assert "state s/0 is named s_0_2 in the bundle and its API" in output


def test_inputs_and_outputs_with_the_same_plain_name_get_distinct_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape: foreign.Shape = ["batch", 2]
    nodes = [
        helper.make_node("Add", ["in:0", "in/0"], ["both"]),
        helper.make_node("Add", ["h", "both"], ["hn"]),
        helper.make_node("Neg", ["hn"], ["out:0"]),
        helper.make_node("Tanh", ["hn"], [".out"]),
    ]
    inputs = [foreign.value(name, shape) for name in ("in:0", "in/0", "h")]
    outputs = [foreign.value(name, shape) for name in ("out:0", ".out", "hn")]
    file = foreign.save(tmp_path / "file.onnx", nodes, inputs, outputs, [])
    flags = ["--input", "in:0", "--input", "in/0", "--output", "out:0", "--output", ".out"]
    step = manifest_of(export(file, tmp_path / "repository", *flags)).step
    assert [port.name for port in step.inputs] == ["in_0", "in_0_2"]
    assert [port.name for port in step.outputs] == ["out_0", "_.out"]
    output = capsys.readouterr().out
    assert "input in/0 is named in_0_2 in the bundle and its API" in output
    assert "output .out is named _.out in the bundle and its API" in output


def test_names_with_equals_signs_are_known_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If a pair can be split in several ways, the split whose two names are in the file is used."""
    file = two_sums(tmp_path / "file.onnx", "a", "a=b", "c", "b=c")
    flags = ["--state", "a=c", "--state", "a=b=b=c", "--axis", "batch=1"]
    folder = export(file, tmp_path / "repository", *flags)
    assert {one.input.name: one.output for one in manifest_of(folder).states} == {"a": "c", "a=b": "b=c"}
    assert ReferenceSession(folder).step([1.0, 2.0, 3.0]).tolist() == [0.0, 0.0, 0.0]
    found = refusal(capsys, file, tmp_path / "other", "--state", "a=b=c")
    assert "--state a=b=c is ambiguous, it may be 'a' and 'b=c' or 'a=b' and 'c': rename a tensor of the file" in found
    found = refusal(capsys, file, tmp_path / "other", "--state", "no=thing=c")
    assert "--state names no, which the file does not have. It has: x float32 [batch, 3]; a float32" in found


def test_other_flags_have_their_value_after_the_last_equals_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = two_sums(tmp_path / "file.onnx", "a=b", "q", "c", "d")
    found = refusal(capsys, file, tmp_path / "repository", "--constant", "a=b=1")
    assert "--constant names" not in found
    found = refusal(
        capsys, file, tmp_path / "repository", "--batch-axis", "a=b=7", "--state", "a=b=c", "--state", "q=d"
    )
    assert "--batch-axis a=b=7: a=b float32 [batch, 3] has 2 axes, counted from 0" in found
