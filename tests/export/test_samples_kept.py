"""`carousel stream --keep`: the pieces of a recording are one session, and give the bits of the whole recording.

A session that a failed command opened is not kept unless it was fed. Also tests `carousel bench` with a model that has
session constants and reads a flag for the last step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np

from carousel import Client
from examples.local_service import LocalService
from tests.cli.shell import Shell
from tests.export.test_export_onnx import export
from tests.export.test_samples_streamed import write_wav
from tests.export.test_session_constants_served import FLAGS, READ, Bare, Vectors, drawn, number_of, same, write_model
from tests.services import local_service

STEPS = 70
"""More than one feed has."""
LEFT_OUT = (
    "{}: the last step has only {} of 4 numbers and is not fed: put these numbers at the beginning of the next piece"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a model that reads a flag for a session's last step, and 4 numbers a step."""
    return write_model(tmp_path_factory.mktemp("made") / "model.onnx")


@pytest.fixture(scope="module")
def service(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    to = tmp_path_factory.mktemp("repository")
    export(file, to, *FLAGS)
    with local_service(to) as running:
        yield running
        assert not [line for line in running.log if line["level"] == "error"]


@pytest.fixture
def shell(service: LocalService) -> Shell:
    return Shell(service.target)


SPEAKER = drawn(3, 1)[1]
GIVEN = ("--constant", "speaker=" + ",".join(map(repr, SPEAKER.tolist())))


def raw(numbers: Vectors) -> bytes:
    return numbers.astype("<f4").tobytes()


def stream(shell: Shell, session_id: str, data: bytes, *words: str, code: int = 0) -> tuple[list[Any], list[str]]:
    """Feeds the command's standard input. Returns the outputs, and the lines of standard error."""
    command = ("stream", "foreign", "-", "--format", "f32", "--json", "--id", session_id, *words)
    done = shell.run(*command, typed=data, code=code)
    return [json.loads(line)["outputs"]["y"] for line in done.stdout.splitlines()], done.stderr.decode().splitlines()


def test_pieces_that_are_cut_anywhere_are_one_session(shell: Shell, service: LocalService, file: Path) -> None:
    """Only the last step of the last piece is the session's last step. The next piece begins with the numbers left out
    before."""
    numbers = drawn(5, STEPS)[0].ravel()
    cut = 40 * READ + 3
    found, lines = stream(shell, "pieces", raw(numbers[:cut]), *GIVEN, "--keep")
    assert lines[:-1] == [LEFT_OUT.format("standard input", 3)]
    assert lines[-1] == "kept: carousel stream foreign --id pieces --resume"
    with Client(service.target) as client:
        number = number_of(client, "pieces")
        assert client.sessions.get("pieces").position == 40
    rest, lines = stream(shell, "pieces", raw(numbers[cut - 3 :]), "--resume")
    assert lines == []
    bare = Bare(file, number, SPEAKER)
    steps = enumerate(numbers.reshape(-1, READ), 1)
    expected = [bare.step(step, is_last=at == STEPS) for at, step in steps]
    assert all(same(one, y) for one, y in zip(found + rest, expected, strict=True))
    shell.run("sessions", "get", "pieces", code=4)


def test_a_kept_session_is_padded_where_that_is_asked_for(shell: Shell) -> None:
    numbers = drawn(6, 3)[0].ravel()[:-1]
    found, lines = stream(shell, "padded", raw(numbers), *GIVEN, "--keep", "--pad")
    assert len(found) == 3
    warning = "standard input: the last step has only 3 of 4 numbers: 1 zero is added"
    assert lines[0] == f"{warning} (with --no-pad, this step is left out)"
    found, lines = stream(shell, "padded", raw(numbers), "--resume", "--no-pad", "--keep")
    assert (len(found), lines[0]) == (2, LEFT_OUT.format("standard input", 3))
    shell.run("sessions", "close", "padded")


@pytest.mark.parametrize("wrong", ["a constant", "nothing", "a feed"])
def test_a_session_that_a_failed_command_opened_without_feeding_is_closed(
    shell: Shell, tmp_path: Path, wrong: str
) -> None:
    """The corrected command can then open it."""
    good = raw(drawn(7, 2)[0])
    if wrong == "a constant":
        stream(shell, "vain", good, *GIVEN, "--constant", "language=1", "--keep", code=1)
    elif wrong == "nothing":
        stream(shell, "vain", good[:8], *GIVEN, "--keep", code=2)
    else:
        path = tmp_path / "wrong.csv"
        path.write_text("1,2,3,4\n1,2,3,x\n")
        shell.run("stream", "foreign", str(path), *GIVEN, "--id", "vain", "--keep", code=2)
    found, _ = stream(shell, "vain", good, *GIVEN, "--keep")
    assert len(found) == 2
    stream(shell, "vain", b"", "--resume", code=2)  # a session that existed before stays
    shell.run("stream", "foreign", str(tmp_path / "none.csv"), "--id", "vain", "--resume", code=2)
    assert len(stream(shell, "vain", good, "--resume")[0]) == 2
    shell.run("sessions", "get", "vain", code=4)


def test_a_session_that_was_fed_before_a_failure_is_kept(shell: Shell, service: LocalService, tmp_path: Path) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text("1,2,3,4\n" * 20_000 + "x\n")  # more than one block
    done = shell.run("stream", "foreign", str(path), *GIVEN, "--id", "some", "--keep", code=2)
    lines = done.stderr.decode().splitlines()
    assert lines[1:] == [
        "kept: carousel stream foreign --id some --resume",
        f"error: {path}, line 20001: it has 1 columns, but the lines before it have 4",
    ]
    with Client(service.target) as client:
        assert client.sessions.get("some").position == len(done.stdout.splitlines()) > 0
    shell.run("sessions", "close", "some")


def test_a_file_that_was_cut_off_is_fed_and_fails(shell: Shell, service: LocalService, tmp_path: Path) -> None:
    """The whole content is fed: the last step is padded, and is the session's last step."""
    path = write_wav(tmp_path / "cut.wav", np.arange(12, dtype=np.int16))
    path.write_bytes(path.read_bytes()[:-6])
    done = shell.run("stream", "foreign", str(path), *GIVEN, "--id", "cut", "--json", code=2)
    values = [json.loads(line)["outputs"]["y"] for line in done.stdout.splitlines()]
    *warnings, error = done.stderr.decode().splitlines()[1:]
    assert warnings == [
        f"{path}: the last step has only 1 of 4 numbers: 3 zeros are added (with --no-pad, this step is left out)"
    ]
    message = f"{path} is cut off: 6 of the 24 bytes of samples that it declares are missing"
    assert json.loads(error)["error"]["message"] == message
    shell.run("sessions", "get", "cut", code=4)
    fed = np.append(np.arange(9) / 2**15, np.zeros(3)).reshape(-1, READ).astype(np.float32)
    with (
        Client(service.target) as client,
        client.session("foreign", session_id="cut", constants={"speaker": SPEAKER}) as session,
    ):
        session.feed(features={"x": fed[:2]})
        assert session.feed(features={"x": fed[2:]}, end=True).outputs[0].values == pytest.approx(values[2], abs=1e-5)


def test_a_model_with_constants_is_measured(shell: Shell) -> None:
    words = ("bench", "foreign", "--sessions", "2", "--seconds", "0.3", "--tokens", "3")
    assert shell.json(*words, *GIVEN)["messages"] > 1
    refused = shell.run(*words, code=1).stderr.decode()
    assert "open.constants['speaker'] is missing" in refused
    refused = shell.run(*words, "--constant", "tongue=1", code=2).stderr.decode()
    assert "foreign has language, speaker, gain, but not 'tongue'" in " ".join(refused.replace("│", "").split())
