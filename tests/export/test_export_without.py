"""Exports, recipes and studies name all missing packages, and say how to install them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from models.missing import missing_message
from tests.conftest import ROOT


def run_without(folder: Path, missing: str, *arguments: str) -> tuple[int, str]:
    """Runs `python ARGUMENTS` where these packages cannot be imported. Returns its exit code and standard error."""
    (folder / "sitecustomize.py").write_text(f"import sys\nfor one in {missing.split()}: sys.modules[one] = None\n")
    environment = {"PYTHONPATH": f"{folder}:{ROOT}"}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("missing", "arguments", "message", "extra"),
    [
        ("torch", "random-lm --name a --to a", "torch is", "export"),
        ("onnx", "onnx a.onnx --name a --to a", "onnx is", "export"),
        ("torch onnx", "onnx a.onnx --name a --to a", "torch and onnx are", "export"),
        ("torch onnx tqdm", "torch a:b --name a --to a", "torch and onnx are", "export"),
        ("torch onnx tqdm", "co2 a.safetensors --to a", "torch, onnx and tqdm are", "train"),
        ("tqdm", "co2 a.safetensors --to a", "tqdm is", "train"),
        ("typer", "co2 a.safetensors --to a", "typer is", "export"),
        ("torch typer", "--help", "torch and typer are", "export"),
    ],
)
def test_an_export_names_all_that_is_missing(
    tmp_path: Path, missing: str, arguments: str, message: str, extra: str
) -> None:
    if missing == "tqdm":  # a recipe imports it after PyTorch, which takes seconds
        (tmp_path / "torch.py").write_text("import tqdm\n")
    code, said = run_without(tmp_path, missing, "-m", "export", *arguments.split())
    expected = f"nothing was written: {message} not installed: ./scripts/setup {extra} (in {ROOT})"
    assert (code, said.splitlines()[-1]) == (1, expected)


PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "models").rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)


RUN_ALL = """
import runpy, sys

for program in sys.argv[1:]:
    for name in [name for name in sys.modules if name.startswith("models")]:
        del sys.modules[name]
    sys.excepthook, sys.argv = sys.__excepthook__, ["-m", "--help"]  # as `python -m` does
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError:
        sys.excepthook(*sys.exc_info())
"""


def test_every_recipe_and_study_names_all_that_is_missing_in_one_line(tmp_path: Path) -> None:
    """One process runs them all, one after the other."""
    code, said = run_without(tmp_path, "torch matplotlib polib tqdm", "-c", RUN_ALL, *PROGRAMS)
    expected = f"torch, matplotlib, polib and tqdm are not installed: ./scripts/setup train (in {ROOT})"
    assert said.splitlines() == [expected] * len(PROGRAMS)
    assert code == 0
    code, said = run_without(tmp_path, "torch matplotlib polib tqdm", "-m", PROGRAMS[0], "--help")
    assert (code, said) == (1, f"{expected}\n")


def test_the_list_of_programs_has_recipes_and_a_study() -> None:
    assert {name.rpartition(".")[0] for name in PROGRAMS} == {"models.recipes", "models.studies"}


def test_other_errors_in_a_recipe_keep_their_traceback(tmp_path: Path) -> None:
    code, said = run_without(tmp_path, "json", "-m", "models.recipes.co2", "--help")
    assert (code, said.splitlines()[0]) == (1, "Traceback (most recent call last):")


@pytest.mark.parametrize("name", ["somebodys", "torch.nothing", None])
def test_import_errors_that_no_extra_explains_are_raised_again(name: str | None) -> None:
    assert missing_message(ModuleNotFoundError("No module", name=name)) is None
