"""Files whose header does not match their content or the model: the content is read, or the error names the
mismatch."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carousel import ModelInfo, Port
from carousel.cli import samples
from carousel.cli.reading import CutOffError, InputError
from carousel.cli.samples import Format
from tests.cli.test_samples import INFO, NAMED, RAMP, chunk, form, piped, read, riff, written

__all__ = ["piped"]

ONE = replace(INFO, model="one", feature_size=2, inputs=(Port("obs", "float32", (2,)),))
ENDED = replace(ONE, model="ended", feature_size=3, inputs=(*ONE.inputs, Port("is_last", "bool", (), is_end=True)))
TWO_SAMPLES = struct.pack("<2h", 2**14, -(2**14))
TAGS = chunk(b"LIST", b"INFOISFT\x06\0\0\0Lavf58")


def sized(size: int, data: bytes = b"", *after: bytes) -> bytes:
    """Returns a WAV file whose header declares `size` bytes of samples."""
    return riff(form(1, 1, 16), b"data" + struct.pack("<I", size) + data, *after)


def read_to_the_end(path: Path, kind: Format | None = None) -> tuple[list[float], str]:
    """Returns the numbers of a file, and the error if it is cut off."""
    found: list[float] = []
    with samples.numbers(path, INFO, kind, None) as blocks:
        try:
            for block in blocks:
                found += block
        except CutOffError as error:
            return found, str(error)
    return found, ""


def test_a_truncated_wav_file_is_read_and_the_missing_bytes_are_reported(tmp_path: Path, piped: Any) -> None:
    whole = written(RAMP * 1000, 16)
    path = tmp_path / "a.wav"
    path.write_bytes(whole[:-8])
    expected = (RAMP[:-4] * 1000 / 2**15).tolist()
    message = "is cut off: 8 of the 24 bytes of samples that it declares are missing"
    assert read_to_the_end(path) == (expected, f"{path} {message}")
    assert read_to_the_end(piped(whole[:-8]), Format.WAV) == (expected, f"standard input {message}")
    path.write_bytes(whole)
    assert read_to_the_end(path) == ((RAMP * 1000 / 2**15).tolist(), "")


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_a_pipe_need_not_know_its_size(piped: Any, size: int) -> None:
    assert read_to_the_end(piped(sized(size, TWO_SAMPLES)), Format.WAV) == ([0.5, -0.5], "")


def test_a_file_that_declares_no_samples_has_none(tmp_path: Path) -> None:
    """Chunks of tags after the samples are not samples, with or without a padding byte."""
    path = tmp_path / "a.wav"
    for after in ((), (TAGS,), (TAGS, chunk(b"id3 ", b"odd")), (chunk(b"id3 ", b"odd")[:-1],)):
        path.write_bytes(sized(0, b"", *after))
        assert read(path) == []


@pytest.mark.parametrize("data", [TWO_SAMPLES * 20, bytes(80), TAGS + TWO_SAMPLES])
def test_a_file_that_was_not_finished_is_refused(tmp_path: Path, piped: Any, data: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(sized(0, data))
    with pytest.raises(InputError, match=r"declares that it has no samples, but data follows: .*: cat .* \| "):
        read(path)
    assert len(read(piped(sized(0, data)), kind=Format.WAV)) == len(data) // 2


def test_sizes_of_64_bits_are_read(tmp_path: Path) -> None:
    """Tags after the samples are not read as samples."""
    sizes = chunk(b"ds64", struct.pack("<QQQI", 0, len(TWO_SAMPLES), 0, 0))
    data = b"data" + struct.pack("<I", 0xFFFFFFFF) + TWO_SAMPLES
    (tmp_path / "a.wav").write_bytes(b"RF64" + riff(sizes, form(1, 1, 16), data, TAGS)[4:])
    assert read(tmp_path / "a.wav") == [0.5, -0.5]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64"])
def test_a_note_says_that_integer_arrays_are_not_scaled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(4).astype(dtype))
    for info in (INFO, ONE):
        assert read(path, info) == [0, 1, 2, 3]
        message = f"{path} has integers ({dtype}): they are fed unchanged, while samples of WAV are scaled"
        assert capsys.readouterr().err.startswith(message)
    counts = replace(ONE, inputs=(Port("count", "int64", (2,)),))
    assert read(path, counts) == [0, 1, 2, 3]
    np.save(path, np.arange(4.0))
    read(path)
    assert capsys.readouterr().err == ""


def test_an_array_that_ends_within_its_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"\x93NU")
    with pytest.raises(InputError, match="is not a NumPy array: it ends within its header"):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("info", "text", "numbers"),
    [
        (ONE, "obs[1],obs[0]\n1,2\n", [2, 1]),
        (ONE, "obs,obs\n1,2\n", [1, 2]),
        (ONE, "obs\n1\n2\n", [1, 2]),
        (ONE, "1,2\n", [1, 2]),
        (ENDED, "obs[0],obs[1]\n1,2\n", [1, 2]),
        (ENDED, "1,2\n", [1, 2]),
    ],
)
def test_one_named_input_may_have_a_header(piped: Any, info: ModelInfo, text: str, numbers: list[float]) -> None:
    assert read(piped(text.encode()), info, Format.CSV) == numbers


@pytest.mark.parametrize(
    ("info", "text", "message"),
    [
        (ONE, "obs[0],ops[1]\n1,2\n", "it names 'ops[1]', but one reads obs[0],obs[1]"),
        (ONE, "obs[0]\n1\n", "it does not name obs[1]: one reads obs[0],obs[1]"),
        (ONE, "obs[0],x\n", "it names 'x', but one reads"),
        (ONE, f"{'x' * 50}\n", f"it names '{'x' * 40}...', but one reads"),
        (ONE, "obs[0],2\n", "could not convert string to float: 'obs[0]'"),
        (NAMED, "obs,obs,reword\n", "it names 'reword', but policy reads obs[0],obs[1],reward"),
        (ENDED, "obs,obs,is_last\n", "it names 'is_last', which the command fills in: leave that column out"),
        (
            ENDED,
            "1,2,0\n",
            "it has 3 columns, but a line for ended has 1 number, or the 2 of a step: the command fills",
        ),
    ],
)
def test_a_wrong_header_is_refused_with_the_wrong_name(piped: Any, info: ModelInfo, text: str, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        read(piped(text.encode()), info, Format.CSV)
    assert str(refusal.value).startswith(f"standard input, line 1: {message}")


def test_an_array_of_whole_vectors_is_refused_with_the_inputs_that_the_command_fills_in(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 3)))
    with pytest.raises(InputError, match=r"\[numbers\] or \[steps, 2\]: the command fills in is_last"):
        read(tmp_path / "a.npy", ENDED)
