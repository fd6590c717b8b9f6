"""The command line on pipes and terminals: whole tables, refused lines, and how a command ends."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.local_service import LocalService
from tests.cli.shell import COMMAND, Shell
from tests.conftest import ROOT
from tests.fork_server import run


@pytest.fixture
def shell(shipped_service: LocalService) -> Shell:
    return Shell(shipped_service.target)


def on_a_terminal(command: list[str], columns: int, typed: str = "") -> tuple[int, str]:
    """Runs a command on a new terminal. Returns its exit code and its output."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment) as process:
        os.close(theirs)
        os.write(ours, typed.encode())
        text = b""
        try:
            while data := os.read(ours, 65_536):
                text += data
        except OSError:  # the other end is closed
            pass
        process.wait(timeout=30)
    os.close(ours)
    return process.returncode, text.decode().replace("\r\n", "\n")


def test_a_table_on_a_pipe_has_a_line_for_each_row(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The width of a terminal does not matter for a pipe."""
    monkeypatch.setenv("COLUMNS", "40")
    header, *rows = shell.out("models").splitlines()
    assert [row.split()[:3] for row in rows] == [
        [name, "1", "serving"]
        for name in ("co2-forecast", "g2p-en", "morse", "pychar-en", "stress-en", "translate-en-de")
    ]
    at = header.index("ABOUT")
    assert all(row[at - 2 : at] == "  " and row[at] != " " for row in rows)


@pytest.mark.parametrize("columns", [20, 40, 100])
def test_names_are_whole_on_a_narrow_terminal(shell: Shell, columns: int) -> None:
    code, out = on_a_terminal([*COMMAND, "-t", shell.target, "models"], columns)
    assert code == 0
    assert {"co2-forecast", "g2p-en", "morse", "pychar-en", "stress-en", "serving", "atmospheric"} <= set(out.split())
    assert max(map(len, out.splitlines())) <= max(columns, 25)  # the longest name beside its heading


def test_a_line_of_a_pipe_that_is_refused_ends_the_stream(shell: Shell) -> None:
    done = shell.run("stream", "g2p-en", "gate", typed="G\nQQ\n:where\n", code=1)
    assert b"standard input, line 2: feed.tokens[0] = 'QQ' is not in the vocabulary" in done.stderr
    assert b"session" not in done.stdout
    for typed in (":nothing\n", ":generate many\n", ":back\n"):
        refused = shell.run("stream", "g2p-en", "gate", typed=typed, code=2).stderr
        assert b"standard input, line 1: " in refused
    done = shell.run("stream", "g2p-en", "gate", "--keep-going", typed="G\nQQ\n:where\n", code=1)
    assert re.search(rb"session \S+, position 1\n", done.stdout)


def test_a_piped_line_that_is_not_text_is_refused(shell: Shell) -> None:
    refused = shell.run("stream", "g2p-en", "gate", typed=b"\xff\n", code=2).stderr.decode()
    assert "is not UTF-8 text" in refused


def test_frames_are_typed_to_a_transducer(shell: Shell) -> None:
    size = 320
    typed = ",".join(["0"] * size) + "\n:where\n"
    assert re.fullmatch(r"\nsession \S+, position 1\n", shell.out("stream", "morse", typed=typed))
    (fed,) = shell.out("stream", "morse", "--json", typed=typed.split("\n")[0]).splitlines()
    assert json.loads(fed) == {"position": 1, "tokens": []}


def test_a_terminal_is_asked_again_after_a_line_that_is_refused(shell: Shell) -> None:
    command = [*COMMAND, "-t", shell.target, "stream", "g2p-en", "gate"]
    code, out = on_a_terminal(command, 80, "QQ\nG\n:where\n:quit\n")
    assert code == 0
    assert "error: feed.tokens[0] = 'QQ' is not in the vocabulary" in out
    assert re.search(r"session \S+, position 1\n", out)


def test_back_undoes_every_line(shell: Shell) -> None:
    """`:back` also undoes the first line and a generation, and prints the earlier output again."""
    typed = "G\n:back\n:where\nG\nEY\n:generate 1\n:back\n:back\n:back\n:where\n\n:where\n"
    done = shell.run("stream", "g2p-en", "gate", "--id", "back", "--json", typed=typed)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    said = [line["tokens"][0]["text"] if "tokens" in line else line for line in lines]
    start, end = {"session_id": "back", "position": 0}, {"session_id": "back", "position": 1}
    generated = {"position": 3, "generated": ["T"], "finish_reason": "max_tokens"}
    assert said == ["G", "EY", "G", start, "EY", "T", generated, "T", "EY", "G", start, "EY", end]
    shell.run("stream", "g2p-en", "gate", "--id", "back-kept", "--keep", typed="G\n")
    resumed = ("stream", "g2p-en", "--id", "back-kept", "--resume")
    assert b"position 1" in shell.run(*resumed, "--keep", typed="EY\n:back\n:where\n").stdout
    assert b"there is no line to undo" in shell.run(*resumed, typed=":back\n", code=2).stderr


def test_a_token_of_a_file_that_is_refused_is_named_by_its_line(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "phonemes").write_text("L UW\n\nIY nope |\n")
    refused = shell.run("stream", "stress-en", str(tmp_path / "phonemes"), code=1).stderr.decode()
    assert "phonemes, line 3: feed.tokens[3] = 'nope' is not in the input vocabulary" in refused


def test_a_source_that_is_refused_is_named_by_its_line(shell: Shell, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text("gate\n\nzwölf\nforget\n")
    message = f"error: {words}, line 3: source.text[2] = 'ö' is not in the source vocabulary"
    done = shell.run("generate", "g2p-en", "-i", str(words), code=1)
    assert (done.stdout, message in done.stderr.decode()) == (b"G EY T\n\n", True)
    done = shell.run("generate", "g2p-en", "-i", str(words), "--keep-going", code=1)
    assert (done.stdout, message in done.stderr.decode()) == (b"G EY T\n\nF AO R G EH T\n", True)
    done = shell.run("generate", "g2p-en", "-i", str(words), "--keep-going", "--json", code=1)
    assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == [1, 4]
    error = json.loads(done.stderr)["error"]
    assert (error["line"], error["field"], error["reason"]) == (3, "source.text[2]", "UNKNOWN_TOKEN")
    months = shell.run("generate", "co2-forecast", "-i", "-", "--keep-going", typed="370 371\nx\n", code=2)
    assert b"standard input, line 2: " in months.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("models", "-t", "TARGET"),
        ("sessions", "list", "--target", "TARGET", "--timeout", "5"),
        ("sessions", "-t", "TARGET", "list"),
        ("-t", "localhost:1", "generate", "g2p-en", "gate", "-t", "TARGET"),
        ("generate", "-t", "TARGET", "g2p-en", "gate", "--token", "none", "--timeout", "5"),
    ],
)
def test_connection_options_stand_before_or_after_a_command(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """The last option counts, also over the environment."""
    monkeypatch.setenv("CAROUSEL_TARGET", "localhost:2")
    done = run("carousel", *(word.replace("TARGET", shell.target) for word in words))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("localhost:1", "no Carousel server can be reached at localhost:1: Connection refused"),
        ("nowhere", "'nowhere' must be HOST:PORT"),
    ],
)
def test_a_missing_server_is_reported_in_one_sentence(target: str, message: str) -> None:
    code = 3 if ":" in target else 2
    for words in (("models",), ("stream", "g2p-en", "gate"), ("bench", "g2p-en"), ("watch", "x"), ("step", "x")):
        done = Shell(target).run(*words, code=code)
        assert message in done.stderr.decode()
        assert len(done.stderr.splitlines()) == 1 if code == 3 else b"Traceback" not in done.stderr


def test_errors_are_json_where_the_output_is(shell: Shell, tmp_path: Path) -> None:
    """Errors of the server, of the command line and of files are JSON."""
    wrong: list[tuple[tuple[str, ...], int, str, str]] = [
        (("generate", "nope", "x"), 4, "NOT_FOUND", "MODEL_NOT_FOUND"),
        (("generate",), 2, "INVALID_ARGUMENT", "USAGE"),
        (("inspect", "co2-forecast", "--features", str(tmp_path / "none")), 2, "INVALID_ARGUMENT", "INPUT"),
        (("sessions", "snapshot", "x", "--to", "x"), 4, "NOT_FOUND", "SESSION_NOT_FOUND"),
    ]
    for words, code, name, reason in wrong:
        done = shell.run(*words, "--json", code=code)
        error = json.loads(done.stderr)["error"]
        assert (error["code"], error["reason"]) == (name, reason)
        assert error["message"]
        assert bool(error.get("request_id")) == (code == 4), "of a call, where there was one"


def read_a_line_and_leave(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()


def interrupt(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)


@pytest.mark.parametrize(("do", "code"), [(read_a_line_and_leave, 141), (interrupt, 130)])
def test_an_abandoned_command_prints_no_error(
    shell: Shell, do: Callable[[subprocess.Popen[str]], None], code: int
) -> None:
    """The reader of its output has left, as `head` does, or the user interrupts the command."""
    text = "x = 1\n" * 20_000
    command = [*COMMAND, "-t", shell.target, "stream", "pychar-en", "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.write(process.stdin.fileno(), text.encode()[:60_000])
        do(process)
        assert (process.stderr.read(), process.wait(timeout=30)) == ("", code)
        process.stdin.close()


@pytest.mark.parametrize("words", ["models", "models --json", "generate g2p-en gate", "forecast co2-forecast 370"])
def test_a_full_disk_is_reported(shell: Shell, words: str) -> None:
    command = [*COMMAND, "-t", shell.target, *words.split()]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=30)
    text = "standard output: No space left on device"
    if "--json" in words:
        error = {"code": "DATA_LOSS", "reason": "OUTPUT", "message": text, "field": ""}
        assert (done.returncode, json.loads(done.stderr)) == (1, {"error": error})
    else:
        assert (done.returncode, done.stderr) == (1, f"error: {text}\n")


def test_a_picture_that_cannot_be_written_is_named(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "full.png").symlink_to("/dev/full")
    done = shell.run("inspect", "g2p-en", "a", "-o", str(tmp_path / "full.png"), code=2)
    assert done.stderr.decode() == f"error: {tmp_path}/full.png: No space left on device\n"


@pytest.mark.parametrize("words", ["models", "models --json", "generate g2p-en a"])
def test_a_closed_output_is_reported(shell: Shell, words: str) -> None:
    script = ["sh", "-c", f'exec "$@" {words} >&-', "sh", *COMMAND, "-t", shell.target]
    done = subprocess.run(script, stderr=subprocess.PIPE, text=True, check=False, timeout=30)
    text = "error: standard output is closed: send it to a file, a pipe or /dev/null\n"
    assert (done.returncode, done.stderr) == (1, text)


def test_an_argument_that_is_not_text_is_refused(shell: Shell) -> None:
    command: list[str | bytes] = [*COMMAND, "-t", shell.target, "generate", "g2p-en", b"\xff"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=30)
    assert done.returncode == 2
    assert b"is not UTF-8 text" in done.stderr


def test_output_works_in_a_limited_encoding(shell: Shell) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [*COMMAND, "-t", shell.target, "step", "ascii", "G", "-m", "g2p-en", "--source", "gate", "--close"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "EY         92.36%  █" in done.stdout.decode()
