"""ONNX files of other exporters become bundles that return, bit for bit, what the file returns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from export.__main__ import main
from export.errors import ExportError
from export.foreign.axes import Hints
from export.foreign.reading import read
from service.repository.bundle import load_bundle
from service.repository.manifest import FILE_NAME, Manifest
from tests.export import foreign
from tests.reference import ReferenceSession

SAMPLES = 32


def export(file: Path, to: Path, *flags: str) -> Path:
    assert main(["onnx", str(file), "--name", "foreign", "--to", str(to), *flags]) == 0
    return to / "foreign" / "1"


def refusal(capsys: pytest.CaptureFixture[str], file: Path, to: Path, *flags: str) -> str:
    assert main(["onnx", str(file), "--name", "foreign", "--to", str(to), *flags]) == 1
    assert not (to / "foreign").exists(), "nothing is written"
    return capsys.readouterr().err


def manifest_of(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / FILE_NAME).read_bytes())


class Alone:
    """Runs the file itself, step by step."""

    def __init__(self, file: Path, states: dict[str, str], *, initial: float = 0.0, **constants: Any) -> None:
        """initial: the first value of the states."""
        self._session = onnxruntime.InferenceSession(str(file))
        self._states = states
        self._constants = constants
        shapes = {one.name: one.shape for one in self._session.get_inputs()}
        self.now = {
            name: np.full([axis if isinstance(axis, int) else 1 for axis in shapes[name]], initial, np.float32)
            for name in states
        }

    def step(self, output: str, **inputs: Any) -> Any:
        found = self._session.run([output, *self._states.values()], {**inputs, **self.now, **self._constants})
        self.now = dict(zip(self._states, found[1:], strict=True))
        return found[0]


def frames(count: int, size: int) -> Any:
    return np.random.default_rng(1).standard_normal((count, size)).astype(np.float32)


def test_a_frame_of_samples_is_a_step_of_a_feature_vector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A voice activity detector: the command finds its state. Flags give the sampling rate and the frame's length."""
    file = foreign.voice_activity(tmp_path / "vad.onnx")
    folder = export(file, tmp_path / "repository", "--constant", "sr=16000", "--axis", f"samples={SAMPLES}")
    output = capsys.readouterr().out
    assert "state          state float32 [2, batch, 8] -> stateN, batch axis 1" in output
    assert "note           state state = stateN: same shape and related names" in output
    assert "constant       sr int64 = 16000" in output
    manifest = manifest_of(folder)
    assert (manifest.step.feature_size, manifest.step.value_size, manifest.step.max_rows) == (SAMPLES, 1, None)
    assert load_bundle(folder).state_size_bytes == 2 * 8 * 4
    alone, session = Alone(file, {"state": "stateN"}, sr=np.array(16000, np.int64)), ReferenceSession(folder)
    for frame in frames(20, SAMPLES):
        assert session.step(frame).tobytes() == alone.step("output", input=frame[np.newaxis]).tobytes()


def test_a_constant_changes_the_results(tmp_path: Path) -> None:
    """Another sampling rate gives other results."""
    file = foreign.voice_activity(tmp_path / "vad.onnx", samples=SAMPLES)
    answers = []
    for rate in (8000, 16000):
        folder = export(file, tmp_path / f"repository-{rate}", "--constant", f"sr={rate}")
        session = ReferenceSession(folder)
        answers.append([session.step(frame).tobytes() for frame in frames(3, SAMPLES)])
    assert answers[0] != answers[1]


def test_tokens_time_first_of_an_old_opset_are_a_language_model(tmp_path: Path) -> None:
    """The ids have 32 bits and the shape [time, batch]. The states h0 and c0 become hn and cn."""
    file = foreign.time_first_tokens(tmp_path / "lm.onnx")
    (tmp_path / "tokens.txt").write_text("<s>\n</s>\na\nb\nc\nd\n")
    folder = export(
        file, tmp_path / "repository", "--vocabulary", str(tmp_path / "tokens.txt"), "--bos", "0", "--eos", "1"
    )
    manifest = manifest_of(folder)
    assert manifest.can_generate
    assert [state.name for state in manifest.states] == ["h0", "c0"]
    assert manifest.step.tokens is not None
    alone = Alone(file, {"h0": "hn", "c0": "cn"})
    alone.step("logits", ids=np.array([[0]], np.int32))
    session = ReferenceSession(folder)  # it runs the start token itself
    for token in (2, 5, 5, 3, 4):
        found = session.step(token)
        assert found.tobytes() == alone.step("logits", ids=np.array([[token]], np.int32))[0, 0].tobytes()


def test_a_file_of_one_row_is_run_row_by_row_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A denoiser: complex bins are flattened into a vector and back, and it has two caches. Its batch is fixed at 1."""
    file = foreign.denoiser(tmp_path / "denoiser.onnx")
    folder = export(file, tmp_path / "repository")
    assert "its batch is fixed at one row: sessions run one by one" in capsys.readouterr().out
    manifest = manifest_of(folder)
    assert (manifest.step.max_rows, manifest.step.feature_size, manifest.step.value_size) == (1, 12, 12)
    assert load_bundle(folder).manifest == manifest
    alone = Alone(file, {"conv_cache": "conv_cache_out", "inter_cache": "inter_cache_out"})
    session = ReferenceSession(folder)
    for frame in frames(10, 12):
        assert session.step(frame).tobytes() == alone.step("enh", mix=frame.reshape(1, 6, 1, 2)).tobytes()


def test_rows_that_other_rows_change_are_run_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file has a batch axis, but its rows change each other."""
    folder = export(foreign.batch_norm_of_rows(tmp_path / "norm.onnx"), tmp_path / "repository", "--force-state")
    output = capsys.readouterr().out
    assert "sessions run one by one, because the proof with several rows in a run failed: " in output
    assert "checked: Several rows in a run: a row's bits change, or it cannot run. Sessions run one by one." in output
    assert "alone and in batches" not in output
    assert "it has no trace graph: no LSTM, GRU or RNN operator" in output
    assert "parity with the file on" in output
    assert manifest_of(folder).step.max_rows == 1
    assert "Sessions run one by one." in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "sr int64 [] is a scalar, the same in every step: give its value with --constant sr=VALUE"),
        (
            ["--constant", "sr=16000"],
            "the axis samples of input float32 [batch, samples] has no size: give it with --axis",
        ),
        (
            ["--constant", "rate=1"],
            "--constant names rate, which the file does not have. It has: input float32 [batch, samples]; state",
        ),
        (
            ["--state", "state=nothing"],
            "--state names nothing, which the file does not have. It has: output float32 [batch, 1]; stateN",
        ),
        (["--constant", "sr=1,2", "--axis", "samples=32"], "--constant sr has 2 values, but sr int64 [] needs 1"),
        (["--constant", "sr=16000", "--axis", "samples=33"], "the file cannot be run on input float32 [batch, 33]"),
        (
            ["--constant", "sr=16000", "--axis", "samples=32", "--vocabulary", "{names}"],
            "input float32 [batch, 32] reads numbers: --vocabulary is for tokens that it reads, --labels",
        ),
        (
            ["--constant", "sr=16000", "--axis", "samples=32", "--labels", "{names}"],
            "--labels has 3 lines, but a step returns 1 numbers",
        ),
        (
            ["--constant", "sr=16000", "--axis", "samples=32", "--feeds-back"],
            "--feeds-back needs as many values as features, but a step reads 32 and returns 1",
        ),
        (
            ["--constant", "sr=16000", "--axis", "samples=32", "--state", "state=output"],
            "--state state=output: it is [2, 1, 8] before a step but [1, 1] after it",
        ),
    ],
)
def test_missing_facts_are_asked_for_with_their_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: Sequence[str], message: str
) -> None:
    (tmp_path / "names").write_text("a\nb\nc\n")
    file = foreign.voice_activity(tmp_path / "vad.onnx")
    flags = [flag.format(names=tmp_path / "names") for flag in flags]
    assert message in refusal(capsys, file, tmp_path / "repository", *flags)


def test_tokens_without_names_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = foreign.time_first_tokens(tmp_path / "lm.onnx")
    found = refusal(capsys, file, tmp_path / "repository")
    assert "ids int32 [seq_len, batch_size] reads integers. If they are tokens, give their names, one a line" in found
    assert "if they are numbers, such as a count or a price in cents, use --input ids" in found


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"no model")
    assert "is not an ONNX model" in refusal(capsys, tmp_path / "file", tmp_path / "repository")


def test_a_model_with_random_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A retry could not get the same results."""
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"]),
        helper.make_node("Add", ["memory", "noise"], ["memory_out"]),
        helper.make_node("Identity", ["memory_out"], ["y"]),
    ]
    inputs = [foreign.value("x", ["batch", 4]), foreign.value("memory", ["batch", 4])]
    outputs = [foreign.value("y", ["batch", 4]), foreign.value("memory_out", ["batch", 4])]
    file = foreign.save(tmp_path / "noise.onnx", nodes, inputs, outputs, [])
    assert "it draws random numbers" in refusal(capsys, file, tmp_path / "repository")


def test_states_of_other_names_are_proposed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists pairs of one shape, as the flags that would make them states."""
    nodes = [
        helper.make_node("Add", ["left", "x"], ["right"]),
        helper.make_node("ReduceMean", ["right"], ["y"], axes=[1], keepdims=1),
    ]
    inputs = [foreign.value("x", ["batch", 3]), foreign.value("left", ["batch", 3])]
    outputs = [foreign.value("y", ["batch", 1]), foreign.value("right", ["batch", 3])]
    file = foreign.save(tmp_path / "pair.onnx", nodes, inputs, outputs, [])
    found = refusal(capsys, file, tmp_path / "repository")
    assert "no state was found: give each pair with --state INPUT=OUTPUT" in found
    assert "these have one shape: --state x=right --state left=right" in found
    export(file, tmp_path / "repository", "--state", "left=right")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("h0", "hn"),
        ("h", "h_out"),
        ("hidden", "next_hidden"),
        ("state", "stateN"),
        ("past_c", "present_c"),
        ("input_states_1", "output_states_1"),
        ("cache.0.k", "cache.0.k_new"),
    ],
)
def test_common_names_of_states_are_paired(before: str, after: str) -> None:
    model = _two_tensors(before, after)
    reading = read(model, Hints())
    assert [(state.input.name, state.output) for state in reading.states] == [(before, after)]


def test_an_old_opset_is_refused_with_a_reason() -> None:
    model = _two_tensors("h", "h_out")
    model.opset_import[0].version = 6
    with pytest.raises(ExportError, match="the file has opset 6, but 7 or later is needed: convert it first"):
        read(model, Hints())


def _two_tensors(before: str, after: str) -> onnx.ModelProto:
    nodes = [helper.make_node("Add", [before, "x"], [after]), helper.make_node("Tanh", [after], ["y"])]
    graph = helper.make_graph(
        nodes,
        "pair",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", before)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("y", after)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_floats_of_other_sizes_are_converted(tmp_path: Path, kind: int) -> None:
    """Inputs and outputs are served as 32-bit floats. The state keeps its own type, and a counter is beside it."""
    nodes = [
        helper.make_node("Add", ["memory", "x"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], ["memory_out"]),
        helper.make_node("Add", ["count", "one"], ["count_out"]),
        helper.make_node("Identity", ["memory_out"], ["y"]),
    ]
    dtype = "float64" if kind == TensorProto.DOUBLE else "float16"
    one = onnx.numpy_helper.from_array(np.array([[1]], np.int64), "one")
    half = onnx.numpy_helper.from_array(np.array(0.5, dtype), "half")
    inputs = [
        foreign.value("x", ["batch", 3], kind),
        foreign.value("memory", ["batch", 3], kind),
        foreign.value("count", ["batch", 1], TensorProto.INT64),
    ]
    outputs = [
        foreign.value("y", ["batch", 3], kind),
        foreign.value("memory_out", ["batch", 3], kind),
        foreign.value("count_out", ["batch", 1], TensorProto.INT64),
    ]
    file = foreign.save(tmp_path / "sizes.onnx", nodes, inputs, outputs, [one, half])
    folder = export(file, tmp_path / "repository")
    manifest = manifest_of(folder)
    assert [state.input.dtype for state in manifest.states] == [dtype, "int64"]
    session, memory = ReferenceSession(folder), np.zeros(3, dtype)
    for frame in frames(5, 3):
        memory = (memory + frame.astype(dtype)) * np.array(0.5, dtype)
        np.testing.assert_array_equal(session.step(frame), memory.astype(np.float32))
    assert manifest.step.max_rows is None
