"""The commands `load`, `unload`, `fork`, `rewind`, `score` and `forecast`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from carousel import Client
from examples.demo import MODELS
from examples.local_service import LocalService
from tests.cli.shell import Shell
from tests.services import local_service

MONTHS = "370 371 372"


@pytest.fixture
def shell(shipped_service: LocalService) -> Shell:
    return Shell(shipped_service.target)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    shutil.copytree(MODELS / "co2-forecast", tmp_path / "co2-forecast")
    return tmp_path


@pytest.fixture
def own_shell(repository: Path) -> Iterator[Shell]:
    """Commands for a server whose models the test may unload."""
    with local_service(repository) as service:
        yield Shell(service.target)


def test_models_are_loaded_and_unloaded(own_shell: Shell, repository: Path) -> None:
    own_shell.run("step", "open", "-m", "co2-forecast", "--source", MONTHS)
    newer = repository / "co2-forecast" / "2"
    shutil.copytree(repository / "co2-forecast" / "1", newer)
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps({**manifest, "version": 2}))
    assert "co2-forecast        2  serving" in own_shell.out("load", "co2-forecast", "--version", "2")
    assert [json.loads(line)["version"] for line in own_shell.out("load", "--json").splitlines()] == [1, 2]
    output = own_shell.run("unload", "co2-forecast", "--version", "1").stderr.decode()
    assert output == "co2-forecast/1 is no longer served; 1 open session continues with it\n"
    unloaded = {"model": "co2-forecast", "version": 2, "num_sessions": 0}
    assert own_shell.json("unload", "co2-forecast", "--version", "2") == unloaded
    own_shell.run("unload", "co2-forecast", "--version", "3", code=4)
    (newer / "step.onnx").write_bytes(b"torn")
    assert "failed" in own_shell.run("load", "--version", "2", "co2-forecast", code=1).stdout.decode()
    own_shell.run("load", "nope", code=4)


def test_sessions_are_forked_and_rewound(shell: Shell) -> None:
    for tokens in ("G", "EY"):
        shell.run("step", "original", tokens, "--model", "g2p-en", "--source", "gate", "--mark")
    assert shell.json("fork", "original", "copy")["marks"] == [1, 2]
    assert shell.json("sessions", "fork", "original")["position"] == 2
    assert shell.json("rewind", "original", "1")["position"] == 1
    assert "original" in shell.out("sessions", "rewind", "original", "1")
    assert [shell.json("sessions", "get", one)["position"] for one in ("original", "copy")] == [1, 2]
    assert b"its marks: 1 [MARK_NOT_FOUND]" in shell.run("rewind", "original", "2", code=1).stderr
    assert b"--position and --mark need TOKENS" in shell.run("step", "original", "--mark", code=2).stderr
    closed = shell.out("sessions", "close", "original", "copy", "--json").splitlines()
    assert [json.loads(line) for line in closed] == [
        {"session_id": "original", "position": 1},
        {"session_id": "copy", "position": 2},
    ]


def test_a_snapshot_is_described_as_json(shell: Shell, tmp_path: Path) -> None:
    shell.run("step", "seen", "-m", "g2p-en", "--source", "gate")
    file = tmp_path / "seen"
    found = shell.json("sessions", "snapshot", "seen", "--to", str(file))
    assert found == {"session_id": "seen", "file": str(file), "num_bytes": file.stat().st_size}
    shell.run("sessions", "close", "seen")


def test_targets_are_scored(shell: Shell, tmp_path: Path) -> None:
    with Client(shell.target) as client:
        likely, unlikely = client.score("g2p-en", [["G", "EY", "T"], ["G", "AE", "T"]], "gate", with_end=True)
    words = ("score", "g2p-en", "--source", "gate", "--end")
    rows = [line.split() for line in shell.out(*words, "G EY T", "G AE T").splitlines()]
    assert rows[0] == ["LOG_PROBABILITY", "TARGET", "OF_EACH_TOKEN"]
    assert [row[:4] for row in rows[1:]] == [
        [f"{likely.log_probability:.4f}", "G", "EY", "T"],
        [f"{unlikely.log_probability:.4f}", "G", "AE", "T"],
    ]
    (tmp_path / "targets").write_text("G EY T\nG AE T\n")
    lines = shell.out(*words, "-i", str(tmp_path / "targets"), "--json").splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["target"] for one in found] == ["G EY T", "G AE T"]
    assert found[0]["log_probabilities"] == pytest.approx(likely.log_probabilities)
    assert found[0]["tokens"] == ["G", "EY", "T"]
    (tmp_path / "targets").write_text("G EY T\n\nG ZZ\n")
    refused = shell.run(*words, "-i", str(tmp_path / "targets"), code=1).stderr.decode()
    assert "targets, line 3: targets[1].tokens.names[1] = 'ZZ' is not in the vocabulary" in refused
    assert "d␣" in shell.out("score", "pychar-en", "d ", "--prompt", "x")


def test_numbers_are_forecast_after_a_history(shell: Shell, tmp_path: Path) -> None:
    """The history comes from words, a file or a pipe; `--then` feeds steps after the source."""
    (tmp_path / "months.csv").write_text("370\n371\n372\n")
    expected = shell.out("forecast", "co2-forecast", MONTHS, "--horizon", "3")
    assert len(expected.splitlines()) == 3
    assert shell.out("forecast", "co2-forecast", "-i", str(tmp_path / "months.csv"), "-n", "3") == expected
    assert shell.out("forecast", "co2-forecast", "-i", "-", "-n", "3", typed="370\r\n371\r\n372") == expected
    after = shell.out("forecast", "co2-forecast", MONTHS, "--then", "373", "-n", "2", "--json").splitlines()
    with Client(shell.target) as client:
        source = [[370.0], [371.0], [372.0]]
        values = client.forecast("co2-forecast", 2, source, features=[[373.0]])
    assert [json.loads(line) for line in after] == [
        {"step": at, "values": pytest.approx(list(one))} for at, one in enumerate(values, 1)
    ]
    generated = shell.json("generate", "co2-forecast", MONTHS, "--prompt", "373", "--max-tokens", "2")["values"]
    assert [pytest.approx(list(one)) for one in values] == generated


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("forecast", "g2p-en", "1"), "g2p-en outputs tokens, not numbers: use `carousel generate`"),
        (("forecast", "co2-forecast"), "give either HISTORY or --input"),
        (
            ("forecast", "co2-forecast", ""),
            'HISTORY: give at least one step, such as `carousel forecast co2-forecast "370 370 370"`',
        ),
        (("forecast", "co2-forecast", "-i", "/dev/null"), "--input: give at least one step, such as"),
        (("forecast", "co2-forecast", "a"), "co2-forecast reads numbers, steps between spaces"),
        (("score", "co2-forecast", "a"), "co2-forecast outputs numbers, but only tokens can be scored"),
        (("score", "g2p-en"), "give either TARGET or --input"),
        (
            ("generate", "co2-forecast", "1", "--top-k", "2"),
            "--top-k: co2-forecast outputs values",
        ),
        (
            ("generate", "pychar-en", "a", "--prompt", "b"),
            "pychar-en has no encoder: give SOURCE, or",
        ),
        (("generate", "g2p-en", "a", "--keep-going"), "--keep-going needs --input"),
        (("inspect", "g2p-en", "a", "-o", "look.txt"), "--to: look.txt must end with one of .png, .html, .htm"),
        (("inspect", "pychar-en", "a", "-o", "-"), "--to: pychar-en has no attention: write a .png or .html file"),
        (("inspect", "co2-forecast", "a b"), "TEXT: co2-forecast reads numbers, steps between spaces"),
    ],
)
def test_arguments_that_do_not_fit_the_model_are_refused(shell: Shell, words: tuple[str, ...], message: str) -> None:
    assert message in shell.run(*words, code=2).stderr.decode()


def test_a_model_without_an_encoder_forecasts_from_the_fed_steps(shell: Shell) -> None:
    prompted = shell.out("generate", "pychar-en", "--prompt", "for i in ra", "--max-tokens", "4")
    assert shell.out("generate", "pychar-en", "for i in ra", "--max-tokens", "4") == prompted
    words = ("generate", "pychar-en", "-i", "-", "--max-tokens", "3")
    assert shell.out(*words, typed="for i in ra\n" * 2) == f"{prompted[:3]}\n" * 2
