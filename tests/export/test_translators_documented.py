"""docs/translators.md is correct: each of its commands and programs runs, with less training."""

from __future__ import annotations

import re
import runpy
import shlex
import warnings
from pathlib import Path

import pytest

from tests.cli.shell import Shell
from tests.services import local_service

pytest.importorskip("torch")

from export.__main__ import main

PAGE = Path(__file__).parents[2] / "docs" / "translators.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_trains_exports_serves_and_calls_a_translator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trains, calls = blocks("python")
    assert "range(900)" in trains
    (tmp_path / "translate.py").write_text(trains.replace("range(900)", "range(3)"))
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(action="ignore"):  # PyTorch's, of its own exporter
        runpy.run_path("translate.py", run_name="__main__")
    makes, serves, asks = blocks("sh")
    capsys.readouterr()
    assert main(shlex.split(makes)[3:]) == 0
    said = capsys.readouterr().out
    for line in blocks("text")[0].splitlines():
        assert line in said
    assert shlex.split(serves) == ["python", "-m", "service", "--models", "my_repository"]
    with local_service(tmp_path / "my_repository") as service:
        exec(calls.replace("localhost:50051", service.target), {})  # runs the page's program
        assert "log_probability" in capsys.readouterr().out
        for command in asks.splitlines():
            Shell(service.target).run(*shlex.split(command)[1:])
