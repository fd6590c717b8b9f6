"""An error about a missing extra gives the command that installs it in this environment."""

from __future__ import annotations

import shlex
import sys
import tomllib
from pathlib import Path

import pytest

import carousel
from carousel import _extras
from tests.conftest import ROOT


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes the package look installed in an environment with pip, in this folder."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(_extras, "__file__", str(tmp_path / "site-packages" / "carousel" / "_extras.py"))
    return tmp_path


def test_in_a_checkout_a_script_does_it() -> None:
    assert _extras.how_to_install("cli", distribution="carousel-client") == f"./scripts/setup cli (in {ROOT})"


@pytest.mark.usefixtures("installed")
def test_from_a_wheel_pip_does_it_with_the_version_that_is_there() -> None:
    command = f"{sys.executable} -m pip install 'carousel-client[cli]=={carousel.__version__}'"
    assert _extras.how_to_install("cli", distribution="carousel-client") == command


@pytest.mark.usefixtures("installed")
def test_an_interpreter_whose_path_has_a_space_is_one_word_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/home/me/my programs/bin/python")
    command = shlex.split(_extras.how_to_install("cli", distribution="carousel-client"))
    assert command[:3] == ["/home/me/my programs/bin/python", "-m", "pip"]


@pytest.mark.usefixtures("installed")
def test_an_environment_without_pip_needs_one_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    command = f"pip --python {sys.executable} install 'carousel-client[cli]=={carousel.__version__}' (with a pip"
    assert _extras.how_to_install("cli", distribution="carousel-client").startswith(command)


def test_in_the_image_which_has_no_pip_it_is_built_with_it(installed: Path) -> None:
    (installed / _extras.IMAGE_MARK).touch()
    for extra in ("encryption", "tracing"):
        command = f"docker build -f deploy/Dockerfile --build-arg EXTRAS={extra} -t carousel ."
        assert _extras.how_to_install(extra, distribution="carousel-serving").startswith(command)
    elsewhere = "./scripts/setup export (in a checkout; an image cannot have it)"
    assert _extras.how_to_install("export", distribution="carousel-serving") == elsewhere
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert _extras.IMAGE_MARK in dockerfile
    assert "ARG EXTRAS" in dockerfile
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["carousel"]["image"]["extras"] == list(_extras.IMAGE_EXTRAS)
