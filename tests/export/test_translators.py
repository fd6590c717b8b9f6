"""Runs show how a translator's two files fit together. What they do not show is asked for in one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

import onnxruntime as ort
import torch

from export.__main__ import main
from export.foreign.axes import Hints
from export.foreign.decoder_file import read_decoder
from export.foreign.decoder_steps import DecoderFile
from export.foreign.encoder_file import EncoderFile
from export.foreign.links import Links
from service.repository.manifest import FILE_NAME, Manifest
from tests.export import translators
from tests.export.translators import B, S, Side

SOURCE, ATTENDING = translators.bridged(), translators.bahdanau()
OF_ONE_STATE = translators.bahdanau(is_flat=False, names=("y", "hidden", "memory", "mask"))


def files(encoder: Side, decoder: Side, folder: Path, opset: int = 17) -> tuple[Path, Path]:
    one = translators.export(encoder, folder / "encoder.onnx", opset=opset)
    return one, translators.export(decoder, folder / "decoder.onnx", opset=opset)


def read(encoder: Side, decoder: Side, folder: Path, opset: int = 17) -> tuple[EncoderFile, DecoderFile]:
    one, other = files(encoder, decoder, folder, opset)
    found = EncoderFile(one, Hints(), Links(), None)
    return found, read_decoder(other, found, Hints(), Links(), None)


@pytest.mark.parametrize(
    ("meaning", "dtype"),
    [
        ("real", torch.bool),
        ("padding", torch.bool),
        ("real", torch.float32),
        ("additive", torch.float32),
        ("real", torch.int64),
        ("padding", torch.int32),
    ],
)
def test_what_a_decoders_mask_means_is_found_by_running_it(meaning: str, dtype: torch.dtype, tmp_path: Path) -> None:
    _, decoder = read(translators.bridged(), translators.bahdanau(meaning, dtype), tmp_path)
    assert [(mask.placed.tensor.name, mask.form) for mask in decoder.masks] == [("mask", meaning)]


@pytest.mark.parametrize("meaning", ["real", "padding"])
def test_what_an_encoders_mask_means_is_found_by_running_it(meaning: str, tmp_path: Path) -> None:
    encoder, _ = read(translators.masked_encoder(meaning), OF_ONE_STATE, tmp_path)
    assert [mask.form for mask in encoder.masks] == [meaning]


@pytest.mark.parametrize(
    "decoder",
    [
        OF_ONE_STATE,
        translators.bahdanau("real"),
        translators.bahdanau("padding", torch.int32),
        translators.bahdanau(lengths=True),
        translators.luong(),
    ],
)
def test_a_decoder_without_its_encoder_is_refused_with_the_flag(
    decoder: Side, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = translators.export(decoder, tmp_path / "decoder.onnx")
    assert main(["onnx", str(file), "--name", "alone", "--to", str(tmp_path / "to")]) == 1
    message = "If this is the decoder of a translator, give its encoder with --encoder FILE"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("opset", [11, 17, 20])
def test_contexts_and_first_states_of_other_names_are_matched_by_shape(opset: int, tmp_path: Path) -> None:
    _, decoder = read(translators.bridged(), translators.bahdanau(names=("w", "q", "keys", "m")), tmp_path, opset)
    assert decoder.contexts == {"keys": "annotations"}
    assert decoder.initial == {"q": "s0"}


def test_the_graph_distinguishes_hidden_and_cell_states(tmp_path: Path) -> None:
    encoder = replace(translators.encoder(), outputs=["memory", "p", "q"])
    decoder = replace(translators.plain(), inputs=["token", "r", "s"], outputs=["logits", "t", "u"], axes={})
    shapes = {"p": {1: "batch"}, "q": {1: "batch"}, "r": {1: "batch"}, "s": {1: "batch"}, "token": B}
    encoder = replace(encoder, axes={**encoder.axes, **{name: shapes[name] for name in ("p", "q")}})
    decoder = replace(decoder, axes={name: shapes[name] for name in ("r", "s", "token")})
    assert read(encoder, decoder, tmp_path)[1].initial == {"r": "p", "s": "q"}


def test_files_that_count_rows_by_their_second_axis_are_read_so(tmp_path: Path) -> None:
    encoder, decoder = read(
        translators.encoder(layers=2, time_major=True), translators.plain(layers=2, time_major=True), tmp_path
    )
    assert (encoder.source.rows, encoder.source.source) == (1, 0)
    assert (encoder.outputs["memory"].rows, encoder.outputs["memory"].source) == (1, 0)
    assert decoder.initial == {"hidden": "h_n", "cell": "c_n"}


def test_a_state_that_the_encoder_does_not_give_begins_at_zero_and_is_named(tmp_path: Path) -> None:
    _, decoder = read(translators.encoder(layers=2), translators.luong(), tmp_path)
    assert decoder.initial == {"h": "h_n", "c": "c_n"}
    assert "state attn_vec begins at zero: the encoder does not return it" in decoder.notes


def test_one_vector_of_the_source_stays_as_it_is(tmp_path: Path) -> None:
    _, decoder = read(translators.encoder("GRU"), translators.fed(), tmp_path)
    assert decoder.initial == {"hidden": "h_n"}
    assert decoder.kept == {"context": "h_n"}


def of_one_row(side: Side) -> Side:
    """Returns the module as it is exported with one row, where only the axis of the source has no fixed size."""
    axes = {name: {at: axis for at, axis in one.items() if axis != "batch"} for name, one in side.axes.items()}
    places = [next((at for at, axis in side.axes[name].items() if axis == "batch"), 0) for name in side.inputs]
    example = [tensor.narrow(at, 0, 1) for tensor, at in zip(side.example, places, strict=True)]
    return replace(side, example=example, axes={name: one for name, one in axes.items() if one})


def test_files_of_one_row_and_raw_ids_are_exported_row_by_row(tmp_path: Path) -> None:
    """Without vocabularies, the ids are the names of the tokens."""
    one, other = files(of_one_row(translators.bridged()), of_one_row(translators.bahdanau("real")), tmp_path)
    assert main(["onnx", str(other), "--encoder", str(one), "--name", "row", "--to", str(tmp_path / "to")]) == 0
    folder = tmp_path / "to" / "row" / "1"
    manifest = Manifest.model_validate_json((folder / FILE_NAME).read_bytes())
    assert manifest.step.max_rows == 1
    assert max(manifest.parity.max_abs_error.values()) == 0.0
    assert (folder / "source.txt").read_text().split() == [str(token) for token in range(translators.SOURCE_SIZE)]
    assert (folder / "target.txt").read_text().split() == [str(token) for token in range(translators.TARGET_SIZE)]
    assert ort.InferenceSession(str(folder / "encoder.onnx")).get_inputs()[0].name == "carousel/source"


@pytest.mark.parametrize(
    ("head", "logits"),
    [("logits", ""), ("softmax", ", except for logits, which may be off by 1e-05: they are logarithms")],
)
def test_the_note_on_bits_leaves_out_logarithms(
    head: str, logits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logits that are logarithms of probabilities are compared within a tolerance, all other outputs bit by bit."""
    one, other = files(translators.encoder(), translators.plain(head=head), tmp_path)
    assert main(["onnx", str(other), "--encoder", str(one), "--name", "note", "--to", str(tmp_path / "to")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"note           a session gets the same bits as a bare loop over the two files{logits}" in lines


ONE_LENGTH = {name: axes for name, axes in ATTENDING.axes.items() if name != "annotations"}
TWO_GIVEN = Side(
    translators.TwoMemories(),
    [translators.tokens(2, 4)],
    ["src"],
    ["a", "b", "h"],
    {"src": S, "a": S, "b": S, "h": translators.STATE},
)
TWO_READ = replace(
    OF_ONE_STATE,
    module=translators.ReadsTwo(),
    example=[*OF_ONE_STATE.example, OF_ONE_STATE.example[2]],
    inputs=["y", "hidden", "keys", "values"],
    axes={**OF_ONE_STATE.axes, "keys": S, "values": S},
)
REFUSALS: list[tuple[Side, Side, str, str]] = [
    # (encoder, decoder, flags, text of the refusal)
    (
        replace(SOURCE, axes={"source": B, "annotations": B, "s0": B}),
        ATTENDING,
        "",
        "source int64 [batch, 4] has a fixed length of 4, but sources have different lengths",
    ),
    (
        SOURCE,
        replace(ATTENDING, axes=ONE_LENGTH),
        "",
        "annotations float32 [2, 4, 8] is fixed to sources of 4 tokens",
    ),
    (TWO_GIVEN, TWO_READ, "", "goes into keys float32 [batch, src, 8]? Use --context keys=a or --context keys=b"),
    (SOURCE, translators.plain(), "", "Use --initial hidden=s0, or --initial hidden=0 for zeros"),
    (SOURCE, ATTENDING, "--context annotations=x", "--context annotations=x: the encoder returns annotations float32"),
    (
        SOURCE,
        ATTENDING,
        "--context x=annotations",
        "--context names x, which decoder.onnx does not have. It has: y_prev int64",
    ),
    (SOURCE, ATTENDING, "--initial s=annotations", "--initial s=annotations: the encoder returns s0 float32"),
    (SOURCE, ATTENDING, "--initial s=x", "--initial s=x: it must be an output of the encoder (annotations, s0)"),
    (SOURCE, ATTENDING, "--mask x", "--mask names x, which the files do not have. They have: source int64"),
    (SOURCE, translators.bahdanau("real"), "--mask mask=1", "--mask mask=1: 1 must be real, padding, additive"),
    (SOURCE, ATTENDING, "--eos 9", "--eos 9 is outside the vocabulary of 9 tokens (0 to 8)"),
    (SOURCE, ATTENDING, "--source-eos 11", "--source-eos 11 is outside the vocabulary of 11 tokens (0 to 10)"),
    (
        SOURCE,
        ATTENDING,
        "--output weights",
        "--output weights: its size depends on the source's length, like attention weights",
    ),
    (SOURCE, ATTENDING, "--output x", "--output names x, which"),
    (SOURCE, ATTENDING, "--feeds-back", "--feeds-back and --encoder cannot be combined"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=[one[3][:40] for one in REFUSALS])
def test_files_that_do_not_fit_are_refused_in_one_line(
    refusal: tuple[Side, Side, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, decoder, flags, found = refusal
    one, other = files(encoder, decoder, tmp_path)
    given = ["onnx", str(other), "--encoder", str(one), "--name", "x", "--to", str(tmp_path / "to"), *flags.split()]
    assert main(given) == 1
    said = capsys.readouterr().err
    assert found in said
    assert said.count("\n") == 1
    assert not (tmp_path / "to").exists()


def test_flags_of_two_files_need_the_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, other = files(SOURCE, ATTENDING, tmp_path)
    assert main(["onnx", str(other), "--name", "x", "--to", str(tmp_path), "--source-eos", "2"]) == 1
    assert "--source-eos needs --encoder FILE" in capsys.readouterr().err


def test_swapped_files_are_reported_as_swapped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder, decoder = files(SOURCE, ATTENDING, tmp_path)
    found = ["onnx", str(encoder), "--encoder", str(decoder), "--name", "swapped", "--to", str(tmp_path / "to")]
    assert main(found) == 1
    said = capsys.readouterr().err
    assert f"Use python -m export onnx {decoder} --encoder {encoder}" in said
    assert len(said.splitlines()) == 1
