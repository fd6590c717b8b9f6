"""Wrong flags of `python -m export onnx`: each is refused by its name in one line, before the file is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")

from pydantic import ValidationError

from export.__main__ import main
from export.errors import refused_fields
from service.repository.manifest import SpecialTokens
from tests.export import foreign
from tests.export.test_export_onnx import export, refusal


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name", "My Model"], "'--name': 'My Model' is not a model name: use 1 to 64 of a-z, 0-9, '.', '_' and '-'"),
        (["--name", "Vad"], "'--name': 'Vad' is not a model name"),
        (["--name", ""], "'--name': '' is not a model name"),
        (["--version", "0"], "'--version': Input should be greater than or equal to 1, not '0'"),
        (["--max-tokens", "0"], "'--max-tokens': Input should be greater than or equal to 1, not '0'"),
        (["--max-bytes", "-1"], "'--max-bytes': Input should be greater than or equal to 1, not '-1'"),
        (["--max-source-length", "many"], "'--max-source-length': Input should be a valid integer"),
        (["--tokenizer", "words"], "'--tokenizer': 'words' is not one of 'characters', 'whitespace'. python"),
        (["--state", "state"], "'--state': 'state' must be NAME=VALUE"),
        (["--axis", "axis=0"], "'--axis': '0' must be an integer, 1 or more"),
        (["--batch-axis", "x=-1"], "'--batch-axis': '-1' must be an integer, 0 or more"),
        (["--constant", "x=a"], "'--constant': 'a' must be numbers, separated by commas"),
        (["--state"], "Option '--state' requires an argument"),
        (["--stat", "a=b"], "No such option: --stat (Possible options: "),
        (["another.onnx"], "Got unexpected extra argument(s) (another.onnx)"),
    ],
)
def test_an_invalid_flag_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: Sequence[str], message: str
) -> None:
    assert main(["onnx", str(tmp_path / "none.onnx"), "--name", "foreign", "--to", str(tmp_path / "to"), *flags]) == 2
    output = capsys.readouterr().err
    assert message in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vocabulary", "{folder}/none"], "/none cannot be read: No such file or directory"),
        (["--vocabulary", "{folder}"], "cannot be read: Is a directory"),
        (["--vocabulary", "{folder}/binary"], "/binary is not UTF-8 text: write one token a line"),
        (
            ["--labels", "{folder}/twice"],
            "token 'a' is in the vocabulary twice, as 0 and 1. Write one token a line",
        ),
        (["--vocabulary", "{folder}/one"], "/one: the vocabulary must have at least 2 tokens, but has 1. Write one"),
        (["--bos", "3"], "--bos 3: a token id needs --vocabulary FILE"),
        (["--vocabulary", "{folder}/two", "--eos", "2"], "--eos 2 is outside the vocabulary of 2 tokens (0 to 1)"),
        (["--vocabulary", "{folder}/two", "--bos", "-1"], "--bos -1 is outside the vocabulary of 2 tokens"),
        (["--state", "a=c", "--constant", "a=1"], "--state and --constant both name a: use one of them"),
        (["--input", "a", "--start", "a"], "--input and --start both name a: use one of them"),
        (
            ["--state", "a=c", "--state", "b=c"],
            "--state gives several inputs one output (c): each state needs its own output",
        ),
    ],
)
def test_invalid_names_are_refused_before_the_file_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: Sequence[str], message: str
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "twice").write_text("a\na\n")
    (tmp_path / "one").write_text("a\n")
    (tmp_path / "two").write_text("a\nb\n")
    flags = [flag.format(folder=tmp_path) for flag in flags]
    assert message in refusal(capsys, tmp_path / "none.onnx", tmp_path / "repository", *flags)


@pytest.mark.parametrize("rate", ["nan", "inf", "1e300", "0.5"])
def test_an_integer_constant_must_be_an_integer(tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: str) -> None:
    file = foreign.voice_activity(tmp_path / "vad.onnx", samples=32)
    found = refusal(capsys, file, tmp_path / "repository", "--constant", f"sr={rate}")
    assert "sr int64 [] takes integers from -9223372036854775808 to 9223372036854775807" in found


def test_an_existing_version_is_refused_before_the_file_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(foreign.denoiser(tmp_path / "file.onnx"), tmp_path / "to")
    capsys.readouterr()
    assert main(["onnx", str(tmp_path / "none.onnx"), "--name", "foreign", "--to", str(tmp_path / "to")]) == 1
    output = capsys.readouterr()
    assert "exists: use another version, or replace it with --replace" in output.err
    assert not output.out


def test_fields_of_a_manifest_are_refused_in_a_line() -> None:
    """The same holds for everything else that a manifest refuses."""
    with pytest.raises(ValidationError) as caught:
        SpecialTokens.model_validate({"pad_id": -1, "bos_id": "x"})
    found = refused_fields(caught.value)
    assert "pad_id = -1: Input should be greater than or equal to 0; bos_id = 'x': Input should be a valid" in found
    assert "\n" not in found
    assert "pydantic" not in found
