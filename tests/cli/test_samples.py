"""What the command line reads from files and pipes of samples, lines and text, however the bytes are cut."""

from __future__ import annotations

import io
import struct
import sys
import wave
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from carousel import ModelInfo, ModelStatus, Port
from carousel.cli import samples
from carousel.cli.reading import InputError
from carousel.cli.samples import Format

INFO = ModelInfo(
    model="vad",
    version=1,
    description="",
    status=ModelStatus.SERVING,
    problem="",
    has_encoder=False,
    source_vocabulary=(),
    target_vocabulary=(),
    max_source_length=0,
    max_tokens=0,
    state_size_bytes=0,
    manifest_digest="",
    variants=(),
    feature_size=4,
    value_size=1,
)
NAMED = replace(
    INFO,
    model="policy",
    feature_size=3,
    inputs=(Port("obs", "float32", (2,)), Port("reward", "float32", ())),
)
RAMP = np.arange(-6, 6)


class Pipe(io.BytesIO):
    """Standard input that returns only a few bytes for each read."""

    def __init__(self, data: bytes, count: int) -> None:
        super().__init__(data)
        self._count = count

    def seekable(self) -> bool:
        return False

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read(self._count)


@pytest.fixture(params=[1, 2, 3, 1000])
def piped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that sets standard input and returns its path, `-`."""

    def give(data: bytes) -> Path:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Pipe(data, request.param)))
        return Path("-")

    return give  # type: ignore[return-value]


def read(path: Path, info: ModelInfo = INFO, kind: Format | None = None, rate: int | None = None) -> list[float]:
    with samples.numbers(path, info, kind, rate) as blocks:
        return [number for block in blocks for number in block]


def written(data: NDArray[Any], bits: int, channels: int = 1, rate: int = 16_000) -> bytes:
    """Returns a WAV file as the standard library writes it. data: signed integers of `bits` bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(bits // 8)
        out.setframerate(rate)
        raw = (data + 128).astype(np.uint8).tobytes() if bits == 8 else data.astype("<i4").tobytes()
        if bits in (16, 24):
            raw = b"".join(raw[at : at + bits // 8] for at in range(0, len(raw), 4))
        out.writeframes(raw)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def form(kind: int, channels: int, bits: int, rest: bytes = b"") -> bytes:
    width = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", kind, channels, 8000, 8000 * width, width, bits) + rest)


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pcm_of_any_bits_is_numbers_from_minus_one_to_one(tmp_path: Path, bits: int, channels: int) -> None:
    """Channels are averaged."""
    top = 2 ** (bits - 1)
    data = np.random.default_rng(bits).integers(-top, top, 30).astype(np.int64)
    data[:channels] = -top
    (tmp_path / "a.wav").write_bytes(written(data, bits, channels))
    expected = (data.reshape(-1, channels) / top).mean(axis=1)
    found = read(tmp_path / "a.wav")
    assert found[0] == -1.0
    assert np.allclose(found, expected, rtol=0, atol=2**-24)
    if channels == 1 and bits < 32:
        assert found == expected.tolist(), "to the bit"


def test_wav_through_a_pipe_is_the_same_however_it_comes(piped: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = piped(written(RAMP * 1000, 16, channels=2, rate=8000))
    assert read(path, kind=Format.WAV) == (RAMP.reshape(-1, 2).mean(axis=1) * 1000 / 2**15).tolist()
    assert capsys.readouterr().err == "standard input: 8000 samples a second, 2 channels, 16 bits\n"


EXTENSIBLE = struct.pack("<HHIH", 22, 24, 0, 1) + bytes(14)


@pytest.mark.parametrize("size", [None, 0xFFFFFFFF])
def test_headers_as_other_programs_write_them(tmp_path: Path, size: int | None) -> None:
    """The format is extensible, other chunks stand before and after the samples, or the length is unknown."""
    data = bytes([0, 0, 0x40, 0, 0, 0xC0])
    found = b"data" + struct.pack("<I", len(data) if size is None else size) + data
    after = chunk(b"LIST", b"after") if size is None else b""
    file = riff(chunk(b"JUNK", b"odd"), form(0xFFFE, 1, 24, EXTENSIBLE), chunk(b"LIST", bytes(70_000)), found, after)
    (tmp_path / "a.WAV").write_bytes(file)
    assert read(tmp_path / "a.WAV") == [0.5, -0.5]


BAD_WAVS = {
    "another file": (b"ID3\x04" + bytes(50), r"is not a WAV file: it begins with b'ID3\x04', not with b'RIFF'"),
    "floats": (
        riff(form(3, 1, 32), chunk(b"data", bytes(8))),
        "has samples of 32-bit floats (WAV format 3): expected PCM of 8, 16, 24 or 32 bits: convert it, such as by"
        " `ffmpeg -i ",
    ),
    "compressed": (riff(form(85, 1, 16), chunk(b"data", b"")), "has samples of 16 bits (WAV format 85): expected PCM"),
    "12 bits": (riff(form(1, 1, 12), chunk(b"data", b"")), "has samples of 12 bits (WAV format 1): expected PCM"),
    "no format": (riff(chunk(b"data", bytes(8))), "is not a WAV file: its samples come before their format"),
    "short format": (riff(chunk(b"fmt ", bytes(8))), "is not a WAV file: the format of its samples has 8 bytes"),
    "no channel": (riff(form(1, 0, 16)), "is not a WAV file: 0 channels of 16 bits do not take 0 bytes"),
    "no samples": (riff(form(1, 1, 16), chunk(b"LIST", b"x")), "has no samples: it ends before them"),
    "cut format": (riff(form(1, 1, 16))[:30], "ends within its header: it was cut off"),
    "cut beginning": (b"RIFF\0", "ends within its header: it was cut off"),
    "cut chunk": (riff(form(1, 1, 16), chunk(b"LIST", bytes(70_000)))[:-9], "ends within its header: it was cut off"),
    "cut size": (riff(form(1, 1, 16), b"dat"), "ends within its header: it was cut off"),
}


@pytest.mark.parametrize(("data", "message"), BAD_WAVS.values(), ids=BAD_WAVS.keys())
def test_a_file_that_is_not_pcm_wav_is_refused_at_once(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with pytest.raises(InputError) as refusal, samples.numbers(path, INFO, None, None):
        raise AssertionError("it was opened")
    assert str(refusal.value).startswith(f"{path} {message}")


def test_another_sampling_rate_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(written(RAMP, 16, rate=8000))
    assert len(read(path, rate=8000)) == len(RAMP)
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match=r"a.wav has 8000 samples a second, but --rate says 16000: convert it"):
        read(path, rate=16_000)
    with pytest.raises(InputError, match="--rate is only for WAV files, and standard input has the format"):
        read(Path("-"), kind=Format.S16, rate=16_000)


def test_raw_samples_may_be_cut_anywhere(piped: Any) -> None:
    assert read(piped((RAMP * 1000).astype("<i2").tobytes()), kind=Format.S16) == (RAMP * 1000 / 2**15).tolist()
    assert read(piped(RAMP.astype("<f4").tobytes()), kind=Format.F32) == RAMP.tolist()


def test_an_incomplete_raw_sample_is_reported(piped: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(piped(b"\x00\x40\x01"), kind=Format.S16) == [0.5]
    assert capsys.readouterr().err == "standard input ends within a sample: 1 of its 2 bytes are left out\n"


def test_a_header_is_not_taken_for_samples(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(written(RAMP, 16))
    with pytest.raises(InputError, match=r"a.raw is a WAV file: give --format wav"):
        read(tmp_path / "a.raw", kind=Format.S16)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1\n2.5\n-3e-1\n", [1, 2.5, np.float32(-0.3)]),
        ("1\r\n2", [1, 2]),
        ("1,2,3,4\n\n5,6,7, 8 \n", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("\ufeff1,2,3,4\n", [1, 2, 3, 4]),
        ("", []),
    ],
)
def test_lines_have_a_sample_or_a_step(piped: Any, text: str, numbers: Sequence[float]) -> None:
    assert read(piped(text.encode()), kind=Format.CSV) == list(numbers)


@pytest.mark.parametrize(
    ("header", "order"),
    [
        ("obs[0],obs[1],reward", [0, 1, 2]),
        ("reward,obs[1],obs[0]", [2, 1, 0]),
        ("obs,obs,reward", [0, 1, 2]),
        ("obs,reward,obs", [0, 2, 1]),
    ],
)
def test_columns_are_found_by_the_names_of_inputs(piped: Any, header: str, order: list[int]) -> None:
    rows = np.arange(6).reshape(2, 3)
    text = header + "\n" + "\n".join(",".join(map(str, row)) for row in rows)
    assert read(piped(text.encode()), NAMED, Format.CSV) == rows[:, order].ravel().tolist()


BAD_LINES = {
    "no number": (INFO, "1\n2\nx\n", "line 3: could not convert string to float: 'x'"),
    "another width": (INFO, "1\n2,3\n", "line 2: it has 2 columns, but the lines before it have 1"),
    "no step": (
        INFO,
        "1,2,3\n",
        "line 1: it has 3 columns, but a line for vad has 1 number, or the 4 of a step",
    ),
    "names": (INFO, "sample\n1\n", "line 1: 'sample' is not a number, and the inputs of vad have no names"),
    "no names": (
        NAMED,
        "1,2,3\n",
        "line 1: it must name each number that a step of policy reads: obs[0],obs[1],reward",
    ),
    "too few": (NAMED, "obs,reward\n", "line 1: it does not name obs[1]: policy reads obs[0],obs[1],reward"),
    "too many": (NAMED, "obs,obs,obs,reward\n", "line 1: it names 'obs' too often: policy reads obs[0]"),
    "twice": (NAMED, "obs[0],obs[0],reward\n", "line 1: it names 'obs[0]' too often: policy reads"),
    "unknown": (NAMED, "obs,obs,reward,done\n", "line 1: it names 'done', but policy reads obs[0],obs[1],reward"),
}


@pytest.mark.parametrize(("info", "text", "message"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_lines_that_do_not_fit_are_refused_by_their_number(
    info: ModelInfo, text: str, message: str, piped: Any
) -> None:
    with pytest.raises(InputError) as refusal:
        read(piped(text.encode()), info, Format.CSV)
    assert str(refusal.value).startswith(f"standard input, {message}")


def test_an_array_of_numpys_has_samples_or_steps(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array in (RAMP, RAMP.astype(np.float64), RAMP.reshape(3, 4), np.asfortranarray(RAMP.reshape(3, 4))):
        np.save(path, array)
        assert read(path) == RAMP.tolist()
    for array in (RAMP.reshape(4, 3), RAMP.reshape(1, 3, 4), np.array(["a"]), RAMP.astype(complex)):
        np.save(path, array)
        with pytest.raises(InputError, match=r"but vad reads numbers, \[numbers\] or \[steps, 4\]"):
            read(path)
    path.write_bytes(b"1,2")
    with pytest.raises(InputError, match="is not a NumPy array: it begins with b'1,2'"):
        read(path)


def test_a_missing_numpy_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", RAMP)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(InputError, match="but NumPy is not installed: pip install numpy"):
        read(tmp_path / "a.npy")


def test_the_format_follows_from_the_file_name_or_must_be_given(tmp_path: Path) -> None:
    for path in (tmp_path / "a.raw", Path("-")):
        (tmp_path / path).touch()
        with pytest.raises(
            InputError, match="is not clear from its name: give --format, one of wav, s16, f32, csv or npy"
        ):
            read(path)
    with pytest.raises(InputError, match=r"none cannot be read: No such file or directory"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match=r"none.wav cannot be read: No such file or directory"):
        read(tmp_path / "none.wav")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read(tmp_path, kind=Format.S16)
    with pytest.raises(InputError, match="policy reads obs, reward: give a CSV file whose first line has"):
        read(Path("-"), NAMED, Format.WAV)


@pytest.mark.parametrize(
    ("tokenizer", "text", "tokens"),
    [
        ("characters", "dé f\r\n", [(1, "d"), (1, "é"), (1, " "), (1, "f"), (1, "\n")]),
        ("characters", "a\n\nb", [(1, "a"), (1, "\n"), (2, "\n"), (3, "b")]),
        ("whitespace", " K  AA\nB\n", [(1, "K"), (1, "AA"), (2, "B")]),
        ("whitespace", "K AA", [(1, "K"), (1, "AA")]),
        ("whitespace", "\n\nK\n AA", [(3, "K"), (4, "AA")]),
        ("whitespace", " \n", []),
    ],
)
def test_a_text_is_its_tokens_and_their_lines_however_it_comes(
    piped: Any, tokenizer: str, text: str, tokens: list[tuple[int, str]]
) -> None:
    info = replace(INFO, tokenizer=tokenizer)
    with samples.tokens(piped(text.encode()), info) as blocks:
        assert [token for block in blocks for token in block] == tokens


def test_input_that_is_not_text_is_refused(piped: Any) -> None:
    with (
        samples.tokens(piped(b"ab\xff"), replace(INFO, tokenizer="characters")) as blocks,
        pytest.raises(InputError, match="standard input is not UTF-8 text: invalid start byte"),
    ):
        list(blocks)


def test_bytes_of_a_pipe_are_used_as_soon_as_they_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block has the numbers of one read."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Pipe(RAMP.astype("<i2").tobytes(), 8)))
    with samples.numbers(Path("-"), INFO, Format.S16, None) as blocks:
        assert [len(block) for block in blocks] == [4, 4, 4]
