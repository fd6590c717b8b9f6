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
LOAD = """
from carousel_server.export.errors import ExportError
from carousel_server.export.factory import load_factory
for module in {modules}:
    try:
        load_factory(f"{{module}}:make")
    except ExportError as error:
        print(error)
"""
"""Prints why each module cannot be imported."""


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


def test_a_module_that_imports_the_checkouts_names_is_told_the_new_ones(staged: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    statements = {
        "export": "from export.torch_model import TorchModel",
        "models": "from models import cells",
        "service": "import service.repository.manifest",
    }
    for name, statement in statements.items():
        (tmp_path / f"my_{name}.py").write_text(statement)
    code, said = run(staged, tmp_path, "-c", LOAD.format(modules=[f"my_{name}" for name in OURS]))
    assert code == 0, said
    for name, line in zip(OURS, said.splitlines(), strict=True):
        assert line.startswith(f"my_{name}:make exists, but an import in it failed: ")
        assert re.search(rf"its name is carousel_server\.{name}(\.\w+)*: change the import to that$", line)
