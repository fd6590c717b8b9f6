"""Runs show which axis counts rows where names do not, and a wrong flag is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import onnx

from tests.export import foreign
from tests.export.test_export_onnx import Alone, export, frames, manifest_of, refusal
from tests.export.test_export_over_time import FEATURES, plain
from tests.reference import ReferenceSession


@pytest.mark.parametrize("names", [[None, None], ["p", "q"], ["T", "n"]])
def test_the_axis_of_rows_is_found_by_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str | None]
) -> None:
    """Time is the first axis, and its name tells nothing or too little. Runs show it: rows are batched, and steps are
    compared."""
    file = plain(tmp_path / "file.onnx")
    model = onnx.load(file)
    for place, name in enumerate(names):
        model.graph.input[0].type.tensor_type.shape.dim[place].Clear()
        if name is not None:
            model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    for value in (*model.graph.input[1:], *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if not axis.dim_value:
                axis.Clear()
    onnx.save(model, file)
    found = refusal(capsys, file, tmp_path / "repository", "--batch-axis", "x=0")
    assert (
        "--batch-axis x=0: that is the time axis, and axis 1 is the batch axis, as runs of two rows show. Use" in found
    )
    folder = export(file, tmp_path / "repository")
    out = capsys.readouterr().out
    assert "7 steps at once return the same as one by one" in out
    assert ("the batch axis of x is 1, as runs of two rows show" in out) == (names[0] != "T")
    assert manifest_of(folder).step.max_rows is None
    alone, session = Alone(plain(tmp_path / "named.onnx"), {"h": "hn", "c": "cn"}), ReferenceSession(folder)
    for frame in frames(4, FEATURES):
        assert session.step(frame).tobytes() == alone.step("y", x=frame.reshape(1, 1, -1)).tobytes()


@pytest.mark.parametrize("flag", ["x=0", "x=2", "h=0", "y=0"])
def test_another_axis_than_that_named_batch_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    found = refusal(capsys, plain(tmp_path / "file.onnx"), tmp_path / "repository", "--batch-axis", flag)
    assert f"--batch-axis {flag}: axis 1 of {flag[0]} float32" in found
    assert f"is named batch. Use --batch-axis {flag[0]}=1" in found


def test_wrong_declared_shapes_of_outputs_are_accepted(tmp_path: Path) -> None:
    """The file declares an output with another number of axes, and with a fixed size for the axis of rows."""
    file = plain(tmp_path / "file.onnx")
    model = onnx.load(file)
    model.graph.output[0].CopyFrom(foreign.value("y", ["any", 8]))
    onnx.save(model, file)
    folder = export(file, tmp_path / "repository")
    assert manifest_of(folder).step.max_rows is None
    alone, session = Alone(plain(tmp_path / "named.onnx"), {"h": "hn", "c": "cn"}), ReferenceSession(folder)
    for frame in frames(4, FEATURES):
        assert session.step(frame).tobytes() == alone.step("y", x=frame.reshape(1, 1, -1)).tobytes()
