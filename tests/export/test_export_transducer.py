"""A transducer's files are joined into one graph, which is compared with a plain loop over the files."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import onnx

from export.__main__ import main
from export.foreign.axes import Hints
from export.transducers.parts import read_encoder
from service.repository.bundle import load_bundle
from tests.export.transducer_files import ENCODED, HIDDEN, PREDICTED, TOKENS, write


def export(folder: Path, files: list[Path], *flags: str) -> Path:
    """Exports the files. Returns the bundle's folder."""
    arguments = [str(file) for file in files]
    assert main(["transducer", *arguments, "--name", "spells", "--to", str(folder), "--history", "16", *flags]) == 0
    return folder / "spells" / "1"


def refusal(capsys: pytest.CaptureFixture[str], files: list[Path], *flags: str) -> str:
    """Exports files that must be refused. Returns the one line that says why nothing was written."""
    arguments = [str(file) for file in files]
    assert main(["transducer", *arguments, "--name", "spells", "--to", str(files[0].parent / "to"), *flags]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_values_of_flags_are_in_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The encoder returns several frames a step, and the prediction network reads the last two tokens."""
    names = tmp_path / "tokens.txt"
    names.write_text("".join(f"{name}\n" for name in ("a", "b", "c", "d", "e", "f", "<blank>")))
    flags = ["--vocabulary", str(names), "--blank", "6", "--start-token", "2", "--blank-penalty", "-2.5"]
    files = write(tmp_path, kind="stateless", num_frames=3)
    bundle = load_bundle(export(tmp_path / "to", files, *flags, "--max-symbols", "2"))
    manifest = bundle.manifest
    emits = manifest.step.emits
    assert emits is not None
    assert (emits.blank_id, emits.max_symbols, emits.num_frames, emits.capacity) == (6, 2, 3, 6)
    assert manifest.step.values is not None
    assert manifest.step.values.shape[-1] == 2 + 2 * 6
    assert bundle.target_vocabulary is not None
    assert bundle.target_vocabulary.names[0] == "a"
    assert not manifest.can_generate
    assert manifest.step.loop is not None  # several frames are one run
    assert manifest.step.max_rows is None  # many sessions are one run too
    assert {state.name: state.input.shape for state in manifest.states} == {
        "encoder.h0": (2, "batch", HIDDEN),
        "encoder.c0": (2, "batch", HIDDEN),
        "predicted": ("batch", PREDICTED),
        "context": ("batch", 2),
        "emitted": ("batch", 16),
        "num_emitted": ("batch", 1),
    }
    first = {manifest.states[place].name: values.tolist() for place, values in bundle.first_values.items()}
    assert (first["emitted"], first["context"]) == ([6] * 16, [2, 2])
    said = capsys.readouterr().out
    assert "frames that emit tokens have the same bits with other rows in a run and in several steps at once" in said


def test_files_of_other_models_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three, stateless = tmp_path / "three", tmp_path / "two"
    three.mkdir()
    stateless.mkdir()
    encoder, predictor, joiner = write(three)
    _, joined = write(stateless, kind="two")
    names = three / "names"
    names.write_text("a\nb\n")
    cases: list[tuple[list[Path], list[str], str]] = [
        ([encoder, predictor], [], f"{predictor} does not read an encoded frame: give the joiner as the third file"),
        ([encoder, joined, joiner], [], f"{joined} reads an encoded frame, as a joiner does: omit {joiner}"),
        ([predictor, predictor, joiner], [], f"{predictor} must read frames and its states"),
        ([encoder, encoder, joiner], [], f"{encoder} must read tokens and its states"),
        ([encoder, predictor, predictor], [], f"cannot tell the inputs of {predictor} apart: it reads"),
        ([encoder, joiner, predictor], [], f"{joiner} must read tokens and its states"),
        ([encoder, predictor, encoder], [], f"{encoder} must read an encoded frame and a prediction"),
        (
            [encoder, predictor, joiner],
            ["--vocabulary", str(names)],
            f"--vocabulary has 2 tokens, but the joiner returns {TOKENS} logits",
        ),
        ([encoder, predictor, joiner], ["--blank", "7"], "--blank 7 is outside the joiner's 7 logits (0 to 6)"),
        ([encoder, predictor, joiner], ["--start-token", "-1"], "--start-token -1 is outside the joiner's 7 logits"),
        ([encoder, predictor, joiner], ["--state", "x=y"], f"--state x=y: neither {encoder} nor {predictor} has such"),
        ([encoder, predictor, joiner], ["--state", "h0=x"], "--state h0=x: neither"),
        ([encoder, predictor, joiner], ["--encoded", "x"], "--encoded names x, but"),
        ([encoder, predictor, joiner], ["--encoder-output", "x"], "--encoder-output names x, but it returns encoder."),
    ]
    for files, flags, expected in cases:
        assert f"nothing was written: {expected}" in refusal(capsys, files, *flags)
    assert ENCODED != PREDICTED  # otherwise only names would distinguish the joiner's inputs


def test_the_lengths_of_rows_are_not_a_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An encoder may return the length of each row and mask what is after it. A length that starts at zero would mask
    everything."""
    encoder, predictor, joiner = write(tmp_path)
    model = onnx.load(encoder)
    lengths = onnx.helper.make_tensor_value_info("length", onnx.TensorProto.INT64, ["batch"])
    model.graph.input.append(lengths)
    model.graph.node.append(onnx.helper.make_node("Identity", ["length"], ["encoded_lengths"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("encoded_lengths", onnx.TensorProto.INT64, ["batch"]))
    onnx.save(model, encoder)
    found = refusal(capsys, [encoder, predictor, joiner])
    assert f"{encoder} reads encoder.length int64 [batch], the length of each row" in found


def test_the_axis_of_rows_is_that_of_the_frames(tmp_path: Path) -> None:
    """This includes a state whose first axis counts layers, in a file with a batch of one row."""
    encoder = write(tmp_path)[0]
    model = onnx.load(encoder)
    for value in [*model.graph.input, *model.graph.output]:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == "batch":
                axis.dim_value = 1
    onnx.save(model, encoder)
    found = read_encoder(encoder, Hints(), None)
    assert found.reads["frames"].batch_axis == 0
    assert [(kept.input.shape, kept.input.batch_axis) for kept in found.states] == [((2, 1, HIDDEN), 1)] * 2


def test_flags_name_states_as_in_their_file_or_as_in_messages(tmp_path: Path) -> None:
    encoder = write(tmp_path)[0]
    found = read_encoder(encoder, Hints(states={"h0": "h1", "encoder.c0": "encoder.c1"}), None)
    pairs = {kept.input.name: kept.output for kept in found.states}
    assert pairs == {"encoder.h0": "encoder.h1", "encoder.c0": "encoder.c1"}
    assert found.notes == ()  # notes give the reasons for pairs that no hint gives


@pytest.mark.parametrize("name", ["T", "T_x"])
def test_an_encoder_whose_first_axis_counts_frames_is_run_in_rows(name: str, tmp_path: Path) -> None:
    files = write(tmp_path, time_axis=name)
    found = read_encoder(files[0], Hints(), None)
    assert found.reads["frames"].batch_axis == 1
    assert any("the batch axis of frames is 1, as runs show" in note for note in found.notes) == (name == "T_x")


def test_a_prediction_network_that_leaves_an_axis_out_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its encoder can be traced."""
    manifest = load_bundle(export(tmp_path / "to", write(tmp_path, kind="squeezed"), "--max-symbols", "2")).manifest
    assert manifest.trace is not None
    assert any(output.name.endswith("forget_gate") for output in manifest.trace.outputs)
    assert "it has no trace graph" not in capsys.readouterr().out
