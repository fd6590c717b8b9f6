"""`carousel stream` with files and pipes: the output of each step is that of a plain loop over the file."""

from __future__ import annotations

import json
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

import numpy as np
from numpy.typing import NDArray

from carousel import Client
from examples.local_service import LocalService
from export.__main__ import main
from tests.cli.shell import COMMAND, Shell
from tests.export import foreign
from tests.export.test_ports_served import FLAGS, NEW, OBSERVED, policy
from tests.reference import ReferenceSession
from tests.services import local_service

FRAME = 32


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a repository of a voice activity detector, and a policy with several named inputs and outputs."""
    made, to = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("repository")
    flags = {"vad": ["--constant", "sr=16000", "--axis", f"samples={FRAME}"], "policy": FLAGS}
    files = {"vad": foreign.voice_activity(made / "vad.onnx"), "policy": policy(made / "policy.onnx")}
    for name, file in files.items():
        assert main(["onnx", str(file), "--name", name, "--to", str(to), *flags[name]]) == 0
    return to


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[LocalService]:
    with local_service(repository) as running:
        yield running
        assert not [line for line in running.log if line["level"] == "error"]


@pytest.fixture
def shell(service: LocalService) -> Shell:
    return Shell(service.target)


def recorded(count: int, seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-(2**15), 2**15, count, np.int16)


def write_wav(path: Path, samples: NDArray[np.int16], channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def answers(repository: Path, samples: NDArray[np.int16]) -> list[float]:
    """Returns the results of a plain loop over the samples. Zeros fill the last step."""
    given = np.append(samples / 2**15, np.zeros(-len(samples) % FRAME)).astype(np.float32)
    reference = ReferenceSession(repository / "vad" / "1")
    return [float(reference.step(frame)[0]) for frame in given.reshape(-1, FRAME)]


def lines(values: list[float], first: int = 1) -> str:
    return "".join(f"{position}\t{value:g}\n" for position, value in enumerate(values, first))


def test_a_wav_file_gives_one_line_a_step(shell: Shell, repository: Path, tmp_path: Path) -> None:
    """There are more steps than one feed has. The last one is padded, and a line says so."""
    samples = recorded(100 * FRAME - 7)
    path = write_wav(tmp_path / "speech.wav", samples)
    expected = answers(repository, samples)
    done = shell.run("stream", "vad", str(path))
    assert done.stdout.decode() == lines(expected)
    assert done.stderr.decode().splitlines() == [
        f"{path}: 16000 samples a second, 1 channel, 16 bits",
        f"{path}: the last step has only 25 of 32 numbers: 7 zeros are added (with --no-pad, this step is left out)",
    ]
    done = shell.run("stream", "vad", str(path), "--no-pad", "--rate", "16000", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [{"position": at, "values": [value]} for at, value in enumerate(expected[:-1], 1)]
    assert done.stderr.decode() == f"{path}: the last step has only 25 of 32 numbers and is left out\n"


@pytest.mark.parametrize("kind", ["s16", "f32", "csv", "wav"])
def test_a_pipe_gives_the_same_lines_as_a_file(shell: Shell, repository: Path, tmp_path: Path, kind: str) -> None:
    samples = recorded(40 * FRAME)
    scaled = (samples / 2**15).astype("<f4")
    data = {
        "s16": samples.astype("<i2").tobytes(),
        "f32": scaled.tobytes(),
        "csv": "".join(f"{sample!r}\n" for sample in scaled.tolist()).encode(),
        "wav": write_wav(tmp_path / "a.wav", samples).read_bytes(),
    }[kind]
    found = shell.run("stream", "vad", "-", "--format", kind, typed=data).stdout.decode()
    assert found == lines(answers(repository, samples))


@pytest.mark.parametrize("kind", ["s16", "f32", "csv", "wav", "npy"])
def test_empty_input_is_reported(shell: Shell, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "empty"
    path.touch()
    for name, found in (("-", "standard input"), (str(path), str(path))):
        done = shell.run("stream", "vad", name, "--format", kind, code=2)
        assert (done.stdout, done.stderr.decode()) == (b"", f"error: {found} has no complete step: nothing was fed\n")


def test_stereo_is_averaged_and_arrays_are_read(shell: Shell, repository: Path, tmp_path: Path) -> None:
    samples = recorded(2 * 3 * FRAME) // 2 * 2
    mean = (samples[::2] // 2 + samples[1::2] // 2).astype(np.int16)
    path = write_wav(tmp_path / "stereo.wav", samples, channels=2)
    expected = lines(answers(repository, mean))
    assert shell.out("stream", "vad", str(path)) == expected
    np.save(tmp_path / "a.npy", (mean / 2**15).astype(np.float32).reshape(-1, FRAME))
    assert shell.out("stream", "vad", str(tmp_path / "a.npy")) == expected


def test_outputs_come_while_the_pipe_is_open(service: LocalService, repository: Path) -> None:
    """A step is answered as soon as its samples are there."""
    samples = recorded(3 * FRAME)
    command = [*COMMAND, "--target", service.target, "stream", "vad", "-", "--format", "s16"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for step, expected in enumerate(answers(repository, samples)):
            process.stdin.write(samples[step * FRAME : (step + 1) * FRAME].astype("<i2").tobytes())
            process.stdin.flush()
            assert process.stdout.readline().decode() == f"{step + 1}\t{expected:g}\n"
        process.stdin.close()
        assert process.wait(30) == 0


def test_a_kept_session_continues_with_another_file(shell: Shell, repository: Path, tmp_path: Path) -> None:
    samples = recorded(20 * FRAME)
    first, second = (
        str(write_wav(tmp_path / f"{at}.wav", part)) for at, part in enumerate(np.split(samples, [12 * FRAME]))
    )
    expected = answers(repository, samples)
    done = shell.run("stream", "vad", first, "--id", "mine", "--keep")
    assert done.stdout.decode() == lines(expected[:12])
    assert "kept: carousel stream vad --id mine --resume" in done.stderr.decode()
    shell.run("stream", "vad", str(tmp_path / "none.wav"), "--id", "mine", "--resume", code=2)
    (tmp_path / "bad.csv").write_text("1,2\n")
    shell.run("stream", "vad", str(tmp_path / "bad.csv"), "--id", "mine", "--resume", code=2)
    assert shell.out("stream", "vad", second, "--id", "mine", "--resume") == lines(expected[12:], first=13)
    shell.run("sessions", "get", "mine", code=4)


def test_named_inputs_are_columns_and_named_outputs_too(shell: Shell, service: LocalService, tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    table = generator.standard_normal((40, OBSERVED + NEW)).astype(np.float32)
    names = [f"samples[{at}]" for at in range(NEW)] + ["obs"] * OBSERVED
    rows = [",".join(map(repr, row)) for row in np.roll(table, NEW, axis=1).tolist()]
    path = tmp_path / "steps.csv"
    path.write_text("\n".join([",".join(names), *rows, ""]))
    with Client(service.target) as client, client.session("policy") as session:
        expected = session.feed(features=table, every_position=True).outputs
    found = [json.loads(line) for line in shell.out("stream", "policy", str(path), "--json").splitlines()]
    assert found == [
        {"position": one.position, "outputs": {name: list(part) for name, part in one.outputs.items()}}
        for one in expected
    ]
    done = shell.run("stream", "policy", str(path))
    shown = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert done.stderr.decode() == "columns: position, action, value, seen\n"
    assert [(int(position), len(action.split(","))) for position, action, _, _ in shown] == [
        (at, 3) for at in range(1, 41)
    ]
    assert [float(value) for _, _, value, _ in shown] == pytest.approx(
        [one.outputs["value"][0] for one in expected], rel=1e-5
    )


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("vad", ("none.wav",), "none.wav cannot be read: No such file or directory"),
        ("vad", ("-",), "the format of standard input is not clear from its name: give --format, one of wav, s16"),
        ("vad", ("speech",), "speech cannot be read: No such file or directory"),
        ("vad", ("text.wav",), "text.wav is not a WAV file: it begins with b'1,2\\n', not with b'RIFF'"),
        (
            "vad",
            ("fine.wav", "--rate", "8000"),
            "fine.wav has 16000 samples a second, but --rate says 8000: convert",
        ),
        ("vad", ("text.csv",), "text.csv, line 1: it has 2 columns, but a line for vad has 1 number, or the 32 of a"),
        ("policy", ("fine.wav",), "policy reads obs, samples: give a CSV file whose first line has these"),
    ],
)
def test_unreadable_input_is_refused_in_one_sentence(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, model: str, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_wav(tmp_path / "fine.wav", recorded(FRAME))
    for name in ("text.wav", "text.csv"):
        (tmp_path / name).write_text("1,2\n")
    done = shell.run("stream", model, *words, code=2)
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"error: {message}")


def test_a_reader_that_leaves_ends_it_quietly(service: LocalService, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "long.wav", recorded(3000 * FRAME))
    command = [*COMMAND, "--target", service.target, "stream", "vad", str(path), "--id", "left", "--rate", "16000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"1\t")
        process.stdout.close()
        assert process.wait(60) == 141  # a shell's exit code for SIGPIPE
        assert process.stderr.read() == b""
    Shell(service.target).run("sessions", "get", "left", code=4)
