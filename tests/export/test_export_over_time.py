"""ONNX files of other exporters: a file that is not a step of a stream is refused with the reason. What its tensors
lack is asked for in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import onnx
from onnx import helper, numpy_helper

from service.repository.bundle import load_bundle
from tests.export import foreign
from tests.export.test_export_onnx import Alone, export, frames, manifest_of, refusal
from tests.reference import ReferenceSession

SIZE, FEATURES = 8, 4
Nodes = list[onnx.NodeProto]


def lstm(
    name: str, source: str, *, num_directions: int = 1, states: Sequence[str] = ("h", "c"), **attributes: Any
) -> Any:
    """Returns an LSTM node and its weights. source: [T, B, F]. The node returns Y, [T, D, B, H], and the last
    states."""
    node = helper.make_node(
        "LSTM", [source, f"{name}W", f"{name}R", f"{name}B", "", *states], [f"{name}Y", f"{name}hn", f"{name}cn"], name
    )
    node.attribute.extend(helper.make_attribute(*one) for one in {"hidden_size": SIZE, **attributes}.items())
    weights = [
        foreign.weight(f"{name}W", num_directions, 4 * SIZE, FEATURES if source == "x" else SIZE),
        foreign.weight(f"{name}R", num_directions, 4 * SIZE, SIZE),
        foreign.weight(f"{name}B", num_directions, 8 * SIZE),
    ]
    return node, weights


def save(
    path: Path, nodes: Nodes, weights: Any, *, rows: int | str = "batch", time: int | str = "T", **more: Any
) -> Path:
    """Writes a file that reads x, [T, B, F], and returns y. Its states h and c become hn and cn."""
    states, directions = more.get("states", ("h", "c")), more.get("directions", 1)
    given = [foreign.value("x", [time, rows, FEATURES])]
    given += [foreign.value(name, [directions, rows, SIZE]) for name in states]
    given += more.get("inputs", [])
    gives = [foreign.value("y", more.get("y", [time, rows, directions * SIZE]))]
    gives += [foreign.value(f"{name}n", [directions, rows, SIZE]) for name in states]
    return foreign.save(path, nodes, given, gives, weights)


def identities(**names: str) -> Nodes:
    return [helper.make_node("Identity", [name], [to]) for to, name in names.items()]


def squeezed(name: str) -> tuple[Nodes, Any]:
    return [helper.make_node("Squeeze", [name, "one"], ["y"])], [
        numpy_helper.from_array(np.array([1], np.int64), "one")
    ]


def plain(path: Path, **more: Any) -> Path:
    node, weights = lstm("a", "x")
    ends, constants = squeezed("aY")
    return save(path, [node, *ends, *identities(hn="ahn", cn="acn")], [*weights, *constants], **more)


def test_several_steps_at_once_are_compared_with_single_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = plain(tmp_path / "plain.onnx")
    folder = export(file, tmp_path / "repository")
    assert "7 steps at once return the same as one by one" in capsys.readouterr().out
    alone, session = Alone(file, {"h": "hn", "c": "cn"}), ReferenceSession(folder)
    for frame in frames(5, FEATURES):
        assert session.step(frame).tobytes() == alone.step("y", x=frame.reshape(1, 1, -1)).tobytes()


def test_a_layer_whose_state_is_no_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first of two layers starts from a constant in each run. --force-state does not change the refusal."""
    first, weights = lstm("a", "x", states=())
    second, others = lstm("b", "shown")
    nodes = [first, helper.make_node("Squeeze", ["aY", "one"], ["shown"]), second]
    ends, constants = squeezed("bY")
    nodes += [*ends, *identities(hn="bhn", cn="bcn")]
    file = save(tmp_path / "two.onnx", nodes, [*weights, *others, *constants])
    assert "LSTM a (hidden size 8) starts from a constant in every step" in refusal(
        capsys, file, tmp_path / "repository"
    )
    found = refusal(capsys, file, tmp_path / "repository", "--force-state")
    assert "y differs between steps one by one and at once" in found
    assert (
        "Its LSTM 'a' starts from zero in each run: its state is not an input of the file. Use --expose-state" in found
    )


@pytest.mark.parametrize("does_keep_time", [True, False], ids=["every step", "the last step"])
def test_a_convolution_over_time_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], does_keep_time: bool
) -> None:
    """This includes a file that returns only the last step."""
    node, weights = lstm("a", "x")
    nodes = [
        node,
        helper.make_node("Squeeze", ["aY", "one"], ["shown"]),  # [T, B, H]
        helper.make_node("Transpose", ["shown"], ["by_row"], perm=[1, 2, 0]),
        helper.make_node("Conv", ["by_row", "K"], ["joined"], "look", pads=[2, 0]),
        helper.make_node("Transpose", ["joined"], ["steps"], perm=[2, 0, 1]),
        helper.make_node(
            "Identity" if does_keep_time else "Gather", ["steps"] if does_keep_time else ["steps", "last"], ["y"]
        ),
        *identities(hn="ahn", cn="acn"),
    ]
    constants = [numpy_helper.from_array(np.array([1], np.int64), "one"), foreign.weight("K", SIZE, SIZE, 3)]
    constants.append(numpy_helper.from_array(np.array(-1, np.int64), "last"))
    shape = ["T", "batch", SIZE] if does_keep_time else ["batch", SIZE]
    file = save(tmp_path / "conv.onnx", nodes, [*weights, *constants], y=shape)
    found = refusal(capsys, file, tmp_path / "repository")
    assert "y differs between steps one by one and at once" in found
    assert "Its Conv 'look' combines neighbouring steps" in found


def test_a_declared_batch_size_is_ignored_if_the_graph_accepts_other_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = plain(tmp_path / "three.onnx", rows=3, time="sequence")
    asked = refusal(capsys, file, tmp_path / "repository")
    assert "which axis of x float32 [sequence, 3, 4] is the batch axis? Give it with --batch-axis x=PLACE" in asked
    for flags in (["--batch-axis", "x=1"], ["--batch-axis", "h=1", "--batch-axis", "c=1"]):
        folder = export(file, tmp_path / "repository", *flags, "--replace")
        assert "its batch is declared as 3 rows; any number is assumed" in capsys.readouterr().out
        assert manifest_of(folder).step.max_rows is None
    model = onnx.load(file)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[1].dim_param = "batch"
    onnx.save(model, tmp_path / "free.onnx")
    alone, session = Alone(tmp_path / "free.onnx", {"h": "hn", "c": "cn"}), ReferenceSession(folder)
    for frame in frames(5, FEATURES):
        assert session.step(frame).tobytes() == alone.step("y", x=frame.reshape(1, 1, -1)).tobytes()


def test_a_constant_of_each_row_is_given_to_each(tmp_path: Path) -> None:
    """The input has the shape [batch], such as a language or a rate."""
    node, weights = lstm("a", "x")
    nodes = [
        node,
        helper.make_node("Squeeze", ["aY", "one"], ["shown"]),
        helper.make_node("Unsqueeze", ["scale", "one"], ["by_row"]),
        helper.make_node("Mul", ["shown", "by_row"], ["y"]),
        *identities(hn="ahn", cn="acn"),
    ]
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    file = save(tmp_path / "scale.onnx", nodes, [*weights, one], inputs=[foreign.value("scale", ["batch"])])
    folder = export(file, tmp_path / "repository", "--constant", "scale=3")
    assert manifest_of(folder).step.max_rows is None, "rows in company were proven"
    scale = np.array([3.0], np.float32)
    alone, session = Alone(file, {"h": "hn", "c": "cn"}, scale=scale), ReferenceSession(folder)
    for frame in frames(5, FEATURES):
        assert session.step(frame).tobytes() == alone.step("y", x=frame.reshape(1, 1, -1)).tobytes()


def test_probabilities_become_logits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The logits are the logarithms of the probabilities. A softmax gives the probabilities again."""
    node, weights = lstm("a", "x")
    nodes = [
        node,
        helper.make_node("Squeeze", ["aY", "one"], ["shown"]),
        helper.make_node("Softmax", ["shown"], ["y"], axis=-1),
        *identities(hn="ahn", cn="acn"),
    ]
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    file = save(tmp_path / "soft.onnx", nodes, [*weights, one])
    (tmp_path / "labels").write_text("\n".join(f"l{place}" for place in range(SIZE)) + "\n")
    folder = export(file, tmp_path / "repository", "--labels", str(tmp_path / "labels"))
    assert "y is probabilities: the logits are their logarithms" in capsys.readouterr().out
    manifest = load_bundle(folder).manifest
    assert manifest.step.logits is not None
    alone, session = Alone(file, {"h": "hn", "c": "cn"}), ReferenceSession(folder)
    for frame in frames(5, FEATURES):
        probabilities = alone.step("y", x=frame.reshape(1, 1, -1))[0, 0]
        np.testing.assert_allclose(np.exp(session.step(frame)), probabilities, rtol=1e-6)


def test_a_flag_for_a_time_axis_of_1_gets_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(plain(tmp_path / "plain.onnx"), tmp_path / "repository", "--axis", "T=1")
    assert "axis T = 1: several steps at once were not compared with steps one by one" in capsys.readouterr().out


def test_a_probability_of_0_is_minus_infinity(tmp_path: Path) -> None:
    node, weights = lstm("a", "x")
    nodes = [
        node,
        helper.make_node("Squeeze", ["aY", "one"], ["shown"]),
        helper.make_node("Mul", ["shown", "much"], ["sharp"]),
        helper.make_node("Softmax", ["sharp"], ["y"], axis=-1),
        *identities(hn="ahn", cn="acn"),
    ]
    constants = [numpy_helper.from_array(np.array([1], np.int64), "one")]
    constants.append(numpy_helper.from_array(np.array(1e5, np.float32), "much"))
    file = save(tmp_path / "sharp.onnx", nodes, [*weights, *constants])
    (tmp_path / "labels").write_text("\n".join(f"l{place}" for place in range(SIZE)) + "\n")
    folder = export(file, tmp_path / "repository", "--labels", str(tmp_path / "labels"))
    assert np.isneginf(ReferenceSession(folder).step(frames(1, FEATURES)[0])).any()


def test_a_vocabulary_that_is_larger_than_the_files_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names"
    names.write_text("".join(f"t{place}\n" for place in range(60)))
    found = refusal(
        capsys, foreign.time_first_tokens(tmp_path / "lm.onnx"), tmp_path / "repository", "--vocabulary", str(names)
    )
    assert "The file may accept fewer tokens than the vocabulary's 60" in found
    assert found.count("\n") <= 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--axis", "nothing=3"],
            "--axis names nothing, which the file does not have. Its axes without a size: T, batch",
        ),
        (["--axis", "x.2=5"], "--axis x.2=5: that axis has the size 4 in the file"),
        (
            ["--batch-axis", "z=0"],
            "--batch-axis names z, which the file does not have. It has: x float32 [T, batch, 4]; h float32",
        ),
        (["--batch-axis", "h=3"], "--batch-axis h=3: h float32 [1, batch, 8] has 3 axes, counted from 0"),
    ],
)
def test_what_a_file_does_not_have_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: Sequence[str], message: str
) -> None:
    found = refusal(capsys, plain(tmp_path / "plain.onnx"), tmp_path / "repository", *flags)
    assert message in found
    assert found.count("\n") <= 2


def test_a_missing_file_is_reported_as_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (f"{tmp_path / 'none.onnx'} does not exist") in refusal(
        capsys, tmp_path / "none.onnx", tmp_path / "repository"
    )
    assert f"{tmp_path} is a folder: give an .onnx file" in refusal(capsys, tmp_path, tmp_path / "repository")


def test_a_file_that_cannot_be_run_says_so_in_a_few_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The log lines of ONNX Runtime are not shown."""
    node, weights = lstm("a", "x")
    nodes = [
        node,
        helper.make_node("Reshape", ["aY", "shape"], ["y"]),
        *identities(hn="ahn", cn="acn"),
    ]
    shape = numpy_helper.from_array(np.array([3, 1, SIZE], np.int64), "shape")
    file = save(tmp_path / "wrong.onnx", nodes, [*weights, shape])
    found = refusal(capfd, file, tmp_path / "repository")
    assert "nothing was written: the file cannot be run on x float32" in found
    assert "[E:onnxruntime" not in found
    assert found.count("\n") <= 10


def test_several_steps_are_one_run_of_a_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loop is proven to have the bits of single steps, for rows of different lengths. Its weights are those of the
    step's own file."""
    folder = export(plain(tmp_path / "plain.onnx"), tmp_path / "repository")
    assert "several steps of a session run at once, with the same bits as one by one" in capsys.readouterr().out
    manifest = manifest_of(folder)
    assert (manifest.format_version, manifest.step.loop, manifest.step.max_chunk) == (2, "loop.onnx", None)
    bundle = load_bundle(folder)
    loop, lengths = bundle.variants["fp32"].loop, np.array([3, 5, 1], np.int64)
    assert loop is not None
    steps = frames(15, FEATURES).reshape(3, 5, FEATURES)
    zeros = {name: np.zeros((1, 3, SIZE), np.float32) for name in ("h", "c")}
    found, *states = loop.run(
        ["carousel/output", "hn", "cn"], {"carousel/input": steps, "carousel/lengths": lengths, **zeros}
    )
    for row, length in enumerate(lengths):
        alone = Alone(tmp_path / "plain.onnx", {"h": "hn", "c": "cn"})
        for place in range(length):
            expected = alone.step("y", x=steps[row, place].reshape(1, 1, -1))
            assert found[row, place].tobytes() == expected.tobytes()
        for state, name in zip(states, ("h", "c"), strict=True):
            assert state[:, row].tobytes() == alone.now[name][:, 0].tobytes(), "past its length a row keeps its state"


def test_a_file_that_is_too_old_for_a_loop_takes_one_step_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names"
    names.write_text("<s>\n</s>\na\nb\nc\nd\n")
    file = foreign.time_first_tokens(tmp_path / "lm.onnx", opset=10)
    folder = export(file, tmp_path / "repository", "--vocabulary", str(names))
    assert "several steps do not run at once" in capsys.readouterr().out
    manifest = manifest_of(folder)
    assert (manifest.format_version, manifest.step.loop, manifest.step.max_chunk) == (1, None, 1)
