"""`--json` prints valid JSON for all numbers, also NaN and infinity."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from carousel import Client, TargetScore
from carousel.cli.printing import json_line
from examples.local_service import LocalService
from tests.cli.shell import Shell

SOURCE = "370 371 372 373"


def strict(line: str) -> Any:
    """Returns the value of a line as other languages read it. Python's reader alone would also accept a bare NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON: {line}")

    return json.loads(line, parse_constant=refuse)


def run(target: str, *words: str, typed: str = "") -> list[Any]:
    """Returns the values that a command prints, one for each line."""
    return [strict(line) for line in Shell(target).out(*words, "--json", typed=typed).splitlines()]


@pytest.mark.parametrize(
    ("number", "word"), [(float("nan"), "NaN"), (float("inf"), "Infinity"), (float("-inf"), "-Infinity")]
)
def test_numbers_without_a_json_form_are_strings(number: float, word: str) -> None:
    nested = {"numbers": [1.5, (number, {"at": number})], "score": TargetScore(number, (number,))}
    assert strict(json_line(nested)) == {
        "numbers": [1.5, [word, {"at": word}]],
        "score": {"log_probability": word, "log_probabilities": [word]},
    }


def test_every_command_prints_nan_as_a_json_string(shipped_service: LocalService, tmp_path: Path) -> None:
    target, model = shipped_service.target, "co2-forecast"
    (step,) = run(target, "step", "no-number", "nan", "--model", model, "--source", SOURCE, "--close")
    assert step["outputs"][0]["values"] == ["NaN"]
    (forecast,) = run(target, "generate", model, "370 371 372 nan", "--max-tokens", "2")
    assert forecast["values"] == [["NaN"], ["NaN"]]
    table = tmp_path / "numbers.csv"
    table.write_text("371\nnan\n")
    streamed = run(target, "stream", model, SOURCE, "--input", str(table))
    assert streamed[1]["values"] == ["NaN"]
    (inside,) = run(target, "inspect", model, "--features", str(table), "--steps", "1")
    assert "NaN" in json.dumps(inside["traces"])


def test_watch_prints_nan_as_a_json_string(shipped_service: LocalService) -> None:
    with Client(shipped_service.target) as client:
        client.step("no-number", model="co2-forecast", source=[[370.0], [371.0], [372.0], [373.0]])
        command = [sys.executable, "-m", "carousel", "--target", shipped_service.target, "watch", "no-number"]
        with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert strict(process.stdout.readline())["event"] == "watching"
            client.step("no-number", features=[[float("-inf")], [float("nan")]], close=True)
            fed, closed = [strict(line) for line in process.stdout]
    assert fed["features"] == [["-Infinity"], ["NaN"]]
    assert fed["step"]["outputs"][0]["values"] == ["NaN"]
    assert closed["event"] == "closed"
