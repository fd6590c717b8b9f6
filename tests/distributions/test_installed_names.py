"""The messages of the staged server name modules and commands that exist there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from distributions.staging import Checkout, stage_client, stage_server
from tests.conftest import ROOT

OURS = ("export", "models", "service")
HIDE = f"import sys\nfor one in {OURS}: sys.modules[one] = None\n"
"""Hides the checkout's names, as in an environment of the wheels."""


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of both distributions."""
    folder = tmp_path_factory.mktemp("staged")
    checkout = Checkout.at(ROOT)
    for one in (stage_client(checkout, folder / "client"), stage_server(checkout, folder / "server")):
        (package,) = (path for path in one.iterdir() if path.is_dir())
        package.rename(folder / package.name)
    (folder / "sitecustomize.py").write_text(HIDE)
    return folder


def run(staged: Path, folder: Path, *arguments: str) -> tuple[int, str]:
    """Runs `python ARGUMENTS` in `folder`. Returns its exit code, and its output followed by its errors."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(staged)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return done.returncode, done.stdout + done.stderr


def test_commands_in_the_exporters_help_exist(staged: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    code, said = run(staged, tmp_path, "-m", "carousel_server.export", "torch", "--help")
    assert code == 0
    (command,) = re.findall(r"`python (-m pydoc [\w.]+)`", re.sub(r"\s+", " ", said))
    code, said = run(staged, tmp_path, *command.split())
    assert code == 0
    assert "class TorchModel" in said


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("from export.torch_model import TorchModel", "export"),
        ("import service.repository.manifest", "service"),
        ("from models import cells", "models"),
    ],
)
def test_a_module_that_imports_the_checkouts_names_is_told_the_new_one(
    staged: Path, tmp_path: Path, statement: str, name: str
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "my_models.py").write_text(statement)
    command = ("-m", "carousel_server.export", "torch", "my_models:make", "--name", "mine", "--to", "repository")
    code, said = run(staged, tmp_path, *command)
    assert code == 1
    assert re.search(rf"its name is carousel_server\.{name}(\.\w+)*: change the import to that", said)
    assert "cannot be found" not in said
