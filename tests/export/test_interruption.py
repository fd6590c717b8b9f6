"""An interrupted export says so and leaves no partial files, also if a library changes or drops the interruption."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from export.__main__ import main
from export.interruption import Interrupted, interruptible
from tests.export import foreign

FACTORY = """
import os, signal

def make():
    os.kill(os.getpid(), signal.{name})
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_an_interrupted_export_reports_the_interruption(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = f"interrupted_by_{name.lower()}"
    (tmp_path / f"{module}.py").write_text(FACTORY.format(name=name))
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["torch", f"{module}:make", "--name", "said", "--to", str(tmp_path / "to")]) == code
    assert capsys.readouterr().err == f"nothing was written: interrupted by {name}\n"
    assert not (tmp_path / "to").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@interruptible()
def interrupted_and_made_another_error() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException as error:
        raise RuntimeError("the file cannot be run") from error


@interruptible()
def interrupted_and_dropped() -> None:
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


@pytest.mark.parametrize("work", [interrupted_and_made_another_error, interrupted_and_dropped])
def test_an_interruption_is_reported_also_if_a_library_changes_or_drops_it(work: Callable[[], None]) -> None:
    with pytest.raises(Interrupted, match="interrupted by SIGTERM"):
        work()


def test_an_ordinary_failure_is_not_reported_as_an_interruption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = foreign.denoiser(tmp_path / "file.onnx")
    assert main(["onnx", str(file), "--name", "said", "--to", str(tmp_path / "to"), "--max-bytes", "10"]) == 1
    assert "interrupted" not in capsys.readouterr().err
