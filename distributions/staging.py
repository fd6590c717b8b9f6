"""Copies the source of a distribution into a separate folder, from which any PEP 517 front end can build it."""

from __future__ import annotations

import ast
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributions import metadata
from distributions.rewriting import Rewriter

VERSION_FILE = Path("carousel", "_version.py")
EPOCH = "315532800"
"""1980, the earliest date that a zip archive can store: for a source of unknown date, in seconds since 1970."""
_BACKEND = '''"""Builds with flit-core. All files have the source's date, so that bytes are the same everywhere."""

import os

os.environ["SOURCE_DATE_EPOCH"] = os.environ.get("SOURCE_DATE_EPOCH") or "{epoch}"

from flit_core.buildapi import *  # noqa: E402, F403  # which reads it
'''
_MAIN = '''"""`python -m {package}`: the command `{command}`."""

import sys

from {package}.{module} import {function}

if __name__ == "__main__":
    sys.exit({function}())
'''


@dataclass(frozen=True, slots=True)
class Checkout:
    """The project's folder. project: its parsed pyproject.toml; version: of both distributions."""

    root: Path
    project: dict[str, Any]
    version: str

    @classmethod
    def at(cls, root: Path) -> Checkout:
        """Reads a checkout. Raises OSError when `root` is not one."""
        tree = ast.parse((root / VERSION_FILE).read_text(encoding="utf-8"))
        (version,) = [ast.literal_eval(one.value) for one in tree.body if isinstance(one, ast.Assign)]
        return cls(root, tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8")), version)

    @property
    def client(self) -> dict[str, Any]:
        """The table of the client's distribution in pyproject.toml."""
        return dict(self.project["tool"]["carousel"]["client"])

    @property
    def server(self) -> dict[str, Any]:
        """The table of the server's distribution in pyproject.toml."""
        return dict(self.project["tool"]["carousel"]["server"])

    def files(self, folder: str) -> Iterator[Path]:
        """Yields the files of a folder, sorted, without Python's bytecode cache."""
        for path in sorted((self.root / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path

    def rewriter(self) -> Rewriter:
        """Returns a rewriter that moves the server's packages below the one package of its distribution."""
        about = self.server
        modules = set()
        for folder in about["folders"]:
            for path in self.files(folder):
                parts = path.relative_to(self.root).with_suffix("").parts
                modules.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        return Rewriter(about["package"], about["folders"], modules, about["programs"])


def stage_client(checkout: Checkout, to: Path, epoch: str = EPOCH) -> Path:
    """Writes the client's source into `to`, a new folder. Returns `to`.

    epoch: the date of the files in the distributions, in seconds since 1970.
    """
    (package,) = checkout.client["folders"]
    _start(checkout, to, checkout.client["readme"], metadata.client(checkout.project, checkout.version), epoch)
    for path in checkout.files(package):
        _copy(path, to / path.relative_to(checkout.root))
    for path in checkout.files("proto"):
        if path.suffix == ".proto":
            _copy(path, to / path.relative_to(checkout.root / "proto"))
    return to


def stage_server(checkout: Checkout, to: Path, epoch: str = EPOCH) -> Path:
    """Writes the server's source, with its packages below one package. Arguments as for `stage_client`."""
    about, rewriter = checkout.server, checkout.rewriter()
    _start(checkout, to, about["readme"], metadata.server(checkout.project, checkout.version), epoch)
    package = to / about["package"]
    package.mkdir()
    (package / "__init__.py").write_text('"""The server, the exporter and the models that they are shown with."""\n')
    (package / "__main__.py").write_text(_main(checkout))
    (package / "py.typed").touch()
    for folder in about["folders"]:
        for path in checkout.files(folder):
            _move(path, package / path.relative_to(checkout.root), rewriter)
    for path in checkout.files(f"model_repository/{about['example']}"):
        _move(path, package / path.relative_to(checkout.root), rewriter)
    return to


def _start(checkout: Checkout, to: Path, readme: str, pyproject: str, epoch: str) -> None:
    to.mkdir(parents=True)
    (to / metadata.BACKEND_FILE).write_text(_BACKEND.format(epoch=epoch), encoding="utf-8")
    (to / "pyproject.toml").write_text(pyproject, encoding="utf-8")
    _copy(checkout.root / readme, to / "README.md")
    for name in checkout.project["project"]["license-files"]:
        _copy(checkout.root / name, to / name)


def _main(checkout: Checkout) -> str:
    command = checkout.server["programs"]["service"]
    module, function = checkout.project["project"]["scripts"][command].split(":")
    return _MAIN.format(package=checkout.server["package"], command=command, module=module, function=function)


def _move(path: Path, to: Path, rewriter: Rewriter) -> None:
    """Copies a file of the server. In code and Markdown, such as a model's card, moved modules get their new names."""
    rewrite = {".py": rewriter.python, ".md": rewriter.text}.get(path.suffix)
    if rewrite is None:
        _copy(path, to)
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)
