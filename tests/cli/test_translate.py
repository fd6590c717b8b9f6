"""`carousel translate` writes one line for each line that it reads, in order, each as soon as possible."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from examples.local_service import LocalService
from tests.cli.shell import COMMAND, Shell


@pytest.fixture
def shell(shipped_service: LocalService) -> Shell:
    return Shell(shipped_service.target)


def test_lines_are_translated_in_order_and_empty_ones_stay(shell: Shell, tmp_path: Path) -> None:
    typed = "gate\n\n  \nstate\r\n\n"
    expected = "G EY T\n\n\nS T EY T\n\n"
    assert shell.out("translate", "g2p-en", typed=typed) == expected
    (tmp_path / "words").write_bytes(b"\xef\xbb\xbf" + typed.encode().rstrip(b"\n"))
    assert shell.out("translate", "g2p-en", "--input", str(tmp_path / "words")) == expected[:-1]
    assert shell.out("translate", "g2p-en", typed="") == ""
    best = shell.out("translate", "g2p-en", "--beam-size", "3", "--length-penalty", "0.5", typed="gate")
    assert best == "G EY T\n"


def test_as_json_a_line_is_an_object(shell: Shell) -> None:
    lines = shell.out("translate", "g2p-en", "--json", typed="\ngate\n").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"source": "gate", "line": 2, "text": "G EY T", "tokens": ["G", "EY", "T"], "finish_reason": "eos"}
    ]


def test_a_refused_line_ends_the_command_unless_keep_going(shell: Shell) -> None:
    done = shell.run("translate", "g2p-en", typed="gate\n\n9\nstate\n", code=1)
    assert done.stdout == b"G EY T\n\n"
    assert b"standard input, line 3: open.source.text[0] = '9' is not in the source vocabulary" in done.stderr
    done = shell.run("translate", "g2p-en", "--keep-going", typed="gate\n\n9\nstate\n", code=1)
    assert done.stdout == b"G EY T\n\n\nS T EY T\n"
    done = shell.run("translate", "g2p-en", typed=b"gate\n\xff\n", code=2)
    assert done.stdout == b"G EY T\n"
    assert b"standard input is not UTF-8 text" in done.stderr


def test_an_untranslatable_input_is_refused_in_one_sentence(shell: Shell, tmp_path: Path) -> None:
    for model in ("pychar-en", "co2-forecast", "morse"):
        refused = shell.run("translate", model, typed="a\n", code=2).stderr.decode()
        assert f"{model} cannot translate: expected a model that reads text and outputs tokens" in refused
    assert b"nope' does not exist" in shell.run("translate", "nope", typed="a\n", code=4).stderr
    assert b"--length-penalty needs --beam-size" in shell.run("translate", "--length-penalty", "1", code=2).stderr
    assert b"cannot be read" in shell.run("translate", "g2p-en", "-i", str(tmp_path / "none"), code=2).stderr


@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        ("<&-", 2, "standard input is closed"),
        (">/dev/full", 1, "standard output: No space left on device"),
    ],
)
def test_unreadable_and_unwritable_files_are_named(shell: Shell, redirection: str, code: int, message: str) -> None:
    command = [*COMMAND, "--target", shell.target, "translate", "g2p-en"]
    script = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command]
    done = subprocess.run(script, input=b"\n", capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.decode()) == (code, f"error: {message}\n")


def test_a_typed_line_is_answered_before_the_next_and_ctrl_c_ends_it(shell: Shell) -> None:
    command = [*COMMAND, "--target", shell.target, "translate", "g2p-en"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for word, phonemes in (("", b"\n"), ("gate", b"G EY T\n"), ("", b"\n"), ("state", b"S T EY T\n")):
            process.stdin.write(f"{word}\n".encode())
            process.stdin.flush()
            assert process.stdout.readline() == phonemes
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == b""


def test_targets_of_subwords_are_scored_as_text(shell: Shell) -> None:
    rows = shell.out("score", "translate-en-de", "Die Datei", "Datei Die", "--source", "The file").splitlines()[1:]
    likely, unlikely = (float(row.split()[0]) for row in rows)
    assert likely > unlikely
