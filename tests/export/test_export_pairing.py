"""States of foreign ONNX files are found by following the graph. States inside the file become inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import onnx
import onnxruntime

from export.errors import ExportError
from export.foreign.axes import Hints
from export.foreign.exposing import expose_states
from export.foreign.reading import read
from service.repository.bundle import load_bundle
from tests.export import foreign, foreign_states
from tests.export.test_export_onnx import Alone, export, frames, manifest_of, refusal
from tests.reference import ReferenceSession


def pairs_of(file: Path, hints: Hints | None = None) -> dict[str, str]:
    return {state.input.name: state.output for state in read(onnx.load(file), hints or Hints()).states}


def refused(file: Path, hints: Hints) -> str:
    with pytest.raises(ExportError) as caught:
        read(onnx.load(file), hints)
    return str(caught.value)


def not_exposed(file: Path, hints: Hints) -> str:
    with pytest.raises(ExportError) as caught:
        expose_states(onnx.load(file), hints)
    return str(caught.value)


@pytest.mark.parametrize(
    ("begins", "ends"),
    [
        (("hx", "cx"), ("hy", "cy")),
        (("onnx::LSTM_1", "onnx::LSTM_2"), ("210", "211")),
        (("a", "b"), ("out_b", "out_a")),
        (("h0", "c0"), ("cn", "hn")),
    ],
    ids=["kindred to people", "numbers", "crossed", "swapped"],
)
def test_the_lstm_node_decides_which_state_is_which(
    tmp_path: Path, begins: tuple[str, str], ends: tuple[str, str]
) -> None:
    """The names do not matter. Nor does it matter that the output y is the hidden state itself, with the same shape."""
    file = foreign_states.lstm_step(tmp_path / "lstm.onnx", begins=begins, ends=ends)
    assert pairs_of(file) == dict(zip(begins, ends, strict=True))
    assert f"state {begins[0]} = {ends[0]}: LSTM rnn connects them" in read(onnx.load(file), Hints()).notes
    folder = export(file, tmp_path / "repository")
    alone, session = Alone(file, dict(zip(begins, ends, strict=True))), ReferenceSession(folder)
    for frame in frames(5, 4):
        assert session.step(frame).tobytes() == alone.step("y", x=frame.reshape(1, 1, 4)).tobytes()


def test_a_pair_in_a_flag_that_contradicts_the_graph_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --force-state it is accepted, and the bundle's card says so."""
    file = foreign_states.lstm_step(tmp_path / "lstm.onnx")
    found = refusal(capsys, file, tmp_path / "repository", "--state", "hx=cy", "--state", "cx=hy")
    assert "--state hx=cy contradicts the graph: LSTM rnn starts with hx as its hidden state, and ends with y" in found
    assert "Omit the pair, or add --force-state" in found
    assert found.count("\n") == 1
    folder = export(file, tmp_path / "repository", "--state", "hx=cy", "--state", "cx=hy", "--force-state")
    note = "tate hx = cy: forced by --force-state, although LSTM rnn starts with hx as its hidden state"
    assert f"note           s{note}" in capsys.readouterr().out
    assert f"Made from lstm.onnx. S{note}" in (folder / "README.md").read_text()


def test_a_pair_in_a_flag_that_agrees_with_the_graph_is_accepted(tmp_path: Path) -> None:
    file = foreign_states.lstm_step(tmp_path / "lstm.onnx")
    assert pairs_of(file, Hints(states={"cx": "cy"}, outputs=["hy"])) == {"cx": "cy", "hx": "y"}


@pytest.mark.parametrize(
    ("begins", "ends", "message"),
    [
        (False, False, "GRU a (hidden size 6) starts from a constant in every step, because no input is its first"),
        (False, True, "GRU a (hidden size 6) starts from a constant in every step, because no input is its first"),
        (True, False, "GRU a (hidden size 6) loses the state after every step, because no output is its last"),
    ],
)
def test_a_second_state_that_is_lost_is_named(tmp_path: Path, begins: bool, ends: bool, message: str) -> None:
    """The state of the first of two GRUs is inside the file: its first value is no input, or its last value is no
    output."""
    file = foreign_states.two_grus(tmp_path / "grus.onnx", begins=begins, ends=ends)
    found = refused(file, Hints())
    assert message in found
    assert "--expose-state makes such states inputs and outputs. If this is intended, use --force-state" in found
    forced = Hints(force_state=True, outputs=["y"], constants={"ha": [0.0]} if begins else {})
    reading = read(onnx.load(file), forced)
    assert [(state.input.name, state.output) for state in reading.states] == [("h", "hn")]
    assert any(message in note and "forced by --force-state" in note for note in reading.notes)


def test_two_states_that_are_inputs_and_outputs_are_paired(tmp_path: Path) -> None:
    file = foreign_states.two_grus(tmp_path / "grus.onnx", begins=True, ends=True)
    assert pairs_of(file) == {"h": "hn", "ha": "ha_n"}


@pytest.mark.parametrize(
    "make",
    [
        foreign_states.two_grus,
        lambda path: foreign_states.two_grus(path, ends=True),
        foreign_states.lstm_without_state,
        lambda path: foreign_states.lstm_without_state(path, time=5),
        lambda path: foreign_states.lstm_without_state(path, first=0.0),
        lambda path: foreign_states.lstm_without_state(path, gives_last=True),
    ],
    ids=["two GRUs", "its last one is given", "no state", "fixed time", "constant zeros", "last states are given"],
)
def test_exposed_states_give_what_the_file_gives_of_the_whole(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """Steps that start from zero give the file's results for the whole sequence. The bundle lists the exposed
    states."""
    file = make(tmp_path / "file.onnx")
    folder = export(file, tmp_path / "repository", "--expose-state")
    names = [state.name for state in manifest_of(folder).states]
    assert names in (["h", "a.hidden"], ["r.rnn.hidden", "r.rnn.cell"])
    whole = onnxruntime.InferenceSession(str(file))
    sequence = frames(5, 4)
    feeds: dict[str, Any] = {"x": sequence[:, np.newaxis]}
    if "h" in names:
        feeds["h"] = np.zeros((1, 1, 6), np.float32)
    (expected,) = whole.run(["y"], feeds)
    session = ReferenceSession(folder)
    found = np.stack([session.step(frame).ravel() for frame in sequence])
    np.testing.assert_allclose(found, expected[:, 0], rtol=0, atol=1e-5)
    assert load_bundle(folder).state_size_bytes == 12 * 4


def test_a_file_without_states_names_its_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = foreign_states.lstm_without_state(tmp_path / "file.onnx")
    found = refusal(capsys, file, tmp_path / "repository")
    assert "no state was found: LSTM /r/rnn (hidden size 6) starts from a constant in every step" in found
    assert "--expose-state makes such states inputs and outputs" in found


def test_states_that_are_not_zero_at_first_are_not_exposed(tmp_path: Path) -> None:
    file = foreign_states.lstm_without_state(tmp_path / "file.onnx", first=0.5)
    found = not_exposed(file, Hints(expose_state=True))
    assert found == "--expose-state: the first hidden state of LSTM /r/rnn is not zero, but sessions begin at zero"


def test_states_are_not_exposed_if_single_steps_give_other_results(tmp_path: Path) -> None:
    """The file first centres the values over the whole sequence."""
    file = foreign_states.lstm_without_state(tmp_path / "file.onnx", mixes="ReduceMean")
    found = not_exposed(file, Hints(expose_state=True))
    assert "--expose-state: y differs by" in found
    assert "(at most 1e-05) between 6 steps with the exposed states and the whole sequence" in found


def test_states_that_are_inputs_and_outputs_are_not_exposed_again(tmp_path: Path) -> None:
    found = not_exposed(foreign_states.lstm_step(tmp_path / "lstm.onnx"), Hints(expose_state=True))
    assert "the states of LSTM rnn (hidden size 8) are inputs and outputs already: omit the flag" in found
    found = not_exposed(foreign_states.plain_cell(tmp_path / "cell.onnx"), Hints(expose_state=True))
    assert found == "--expose-state: the file has no LSTM, GRU or RNN node that reads its time axis"


@pytest.mark.parametrize("direction", ["bidirectional", "reverse"])
@pytest.mark.parametrize("expose", [False, True])
def test_a_file_that_reads_backwards_over_time_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], direction: str, expose: bool
) -> None:
    file = foreign_states.both_directions(tmp_path / "gru.onnx", direction)
    found = refusal(capsys, file, tmp_path / "repository", *(["--expose-state"] if expose else []))
    assert f"GRU rnn needs the whole sequence, because its direction is {direction}: it cannot be served one" in found


def test_a_file_that_reads_backwards_over_one_frame_is_served(tmp_path: Path) -> None:
    """A node over a frame's bands starts from zero in every frame, so it loses no state."""
    file = foreign_states.two_paths(tmp_path / "paths.onnx")
    hints = Hints(batch_axes={"s": 0})
    reading = read(onnx.load(file), hints)
    assert [(state.input.name, state.output) for state in reading.states] == [("s", "t")]
    assert reading.notes == ("state s = t: GRU over_time connects them",)


@pytest.mark.parametrize(
    ("make", "pairs", "why"),
    [
        (foreign_states.stacked, {"p": "u", "q": "v"}, "LSTM l0 connects them"),
        (foreign_states.scanned, {"p": "v", "q": "u"}, "Scan sum connects them"),
        (lambda path: foreign_states.scanned(path, "Loop"), {"p": "v", "q": "u"}, "Loop sum connects them"),
        (foreign_states.plain_cell, {"p": "u"}, "the only output of its shape that depends on it"),
        (foreign_states.cached_convolution, {"p": "u", "q": "v"}, "the only output of its shape that depends on it"),
    ],
    ids=["Split and Concat", "Scan", "Loop", "plain cell", "convolution cache"],
)
def test_states_are_followed_through_the_graph(
    tmp_path: Path, make: Callable[[Path], Path], pairs: dict[str, str], why: str
) -> None:
    """The names tell nothing. A note gives the reason for the first pair, and the bundle has the same pairs."""
    file = make(tmp_path / "file.onnx")
    assert pairs_of(file) == pairs
    assert f"state p = {pairs['p']}: {why}" in read(onnx.load(file), Hints()).notes
    folder = export(file, tmp_path / "repository")
    assert {state.input.name: state.output for state in manifest_of(folder).states} == pairs


def test_states_are_followed_into_branches(tmp_path: Path) -> None:
    file = foreign_states.in_branches(tmp_path / "file.onnx")
    reading = read(onnx.load(file), Hints(constants={"sr": [16000.0]}))
    assert {state.input.name: state.output for state in reading.states} == {"p": "u", "q": "v"}
    assert "state p = u: LSTM narrow connects them" in reading.notes
    found = refused(file, Hints(constants={"sr": [16000.0]}, states={"p": "v"}))
    assert "--state p=v contradicts the graph: LSTM narrow starts with p as its cell state, and ends with u" in found


def test_a_state_that_is_only_partly_an_output_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Of a stack's two layers, only the second one's last state is an output. --expose-state cannot help."""
    model = onnx.load(foreign_states.stacked(tmp_path / "file.onnx"))
    joined = next(node for node in model.graph.node if list(node.output) == ["u"])
    joined.input[0] = "hn1"
    for expose, advice in ((False, "--expose-state makes such states inputs"), (True, "--expose-state cannot give it")):
        with pytest.raises(ExportError) as caught:
            read(model, Hints(expose_state=expose))
        assert "LSTM l0 (hidden size 4) loses the state after every step, because no output is" in str(caught.value)
        assert advice in str(caught.value)


def test_a_state_in_a_branch_is_not_exposed(tmp_path: Path) -> None:
    model = onnx.load(foreign_states.in_branches(tmp_path / "file.onnx"))
    for attribute in next(node for node in model.graph.node if node.op_type == "If").attribute:
        del attribute.g.node[0].input[5:]
    with pytest.raises(ExportError, match="is in a branch of an If, where its state cannot be exposed"):
        expose_states(model, Hints(expose_state=True, constants={"sr": [16000.0]}))


def test_a_file_that_cannot_take_one_step_is_refused(tmp_path: Path) -> None:
    """The file contains a fixed shape. The message has no text of ONNX Runtime."""
    model = onnx.load(foreign_states.lstm_without_state(tmp_path / "file.onnx", time=5))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([5, 1, 4], np.int64), "shape"))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    model.graph.node.insert(0, onnx.helper.make_node("Reshape", ["x", "shape"], ["read"]))
    model.graph.node[1].input[0] = "read"
    with pytest.raises(ExportError) as caught:
        expose_states(model, Hints(expose_state=True, batch_axes={"x": 1}))
    assert str(caught.value).startswith("--expose-state: the file cannot be run one step at a time. Export it with")


def test_a_cache_that_is_replaced_as_a_whole_needs_a_flag(tmp_path: Path) -> None:
    """The last frame becomes the cache: a path leads from the frame to the cache's output, and none from the cache."""
    for name, ends in (("p", "u"), ("cache", "cache_out")):
        nodes = [
            onnx.helper.make_node("Sub", ["x", name], ["change"]),
            onnx.helper.make_node("ReduceMean", ["change"], ["y"], axes=[1], keepdims=1),
            onnx.helper.make_node("Identity", ["x"], [ends]),
        ]
        shape: foreign.Shape = ["batch", 4]
        inputs = [foreign.value("x", shape), foreign.value(name, shape)]
        outputs = [foreign.value("y", ["batch", 1]), foreign.value(ends, shape)]
        file = foreign.save(tmp_path / "file.onnx", nodes, inputs, outputs, [], 13)
        if name == "p":
            assert "no state was found: give each pair with --state INPUT=OUTPUT" in refused(file, Hints())
        else:
            assert pairs_of(file) == {name: ends}


def test_an_input_beside_the_states_is_not_a_state(tmp_path: Path) -> None:
    """A mask reaches an output of its own shape, beside a state of a recurrent node."""
    model = onnx.load(foreign_states.two_grus(tmp_path / "file.onnx", begins=True, ends=True))
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["y"], ["mean"], axes=[2], keepdims=1))
    model.graph.node.append(onnx.helper.make_node("Mul", ["mean", "mask"], ["score"]))
    model.graph.input.append(foreign.value("mask", ["time", "batch", 1]))
    model.graph.output.append(foreign.value("score", ["time", "batch", 1]))
    with pytest.raises(ExportError, match="which inputs does a step read"):
        read(model, Hints())
    reading = read(model, Hints(constants={"mask": [1.0]}, outputs=["y"]))
    assert [(state.input.name, state.output) for state in reading.states] == [("h", "hn"), ("ha", "ha_n")]


@pytest.mark.parametrize(
    ("make", "crossed", "said"),
    [
        (
            foreign_states.written_lstm,
            {"h": "cn", "c": "hn"},
            "--state h=cn contradicts the graph: cn is c multiplied by a gate",
        ),
        (
            foreign_states.written_grus,
            {"h1": "h2_out", "h2": "h1_out"},
            "h2_out is h2 multiplied by a gate plus new values",
        ),
    ],
)
def test_crossed_states_of_written_cells_are_refused(
    tmp_path: Path, make: Callable[[Path], Path], crossed: dict[str, str], said: str
) -> None:
    """A state that a gate keeps, and to which something new is added, becomes itself. The right pairs are accepted,
    whether flags give them or the graph shows them."""
    file = make(tmp_path / "file.onnx")
    assert said in refused(file, Hints(states=crossed))
    reading = read(onnx.load(file), Hints(states=crossed, force_state=True))
    assert {state.input.name: state.output for state in reading.states} == crossed
    assert any("forced by --force-state, although" in note for note in reading.notes)
    right = dict(zip(crossed, reversed(crossed.values()), strict=True))
    assert pairs_of(file) == pairs_of(file, Hints(states=right)) == right


def test_states_that_become_others_are_not_crossed(tmp_path: Path) -> None:
    """A delay line passes each state on to the next one."""
    pairs = {"p": "p_out", "q": "q_out"}
    assert pairs_of(foreign_states.delay_line(tmp_path / "file.onnx"), Hints(states=pairs)) == pairs
