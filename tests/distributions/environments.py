"""New virtual environments, into which distributions are installed as users install them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_OF_PIP = {"pip", "setuptools"}


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment in `folder`. Programs run in `work`, a folder outside the checkout."""

    folder: Path
    work: Path

    @classmethod
    def make(cls, folder: Path) -> Environment:
        """Makes an environment without packages."""
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True, timeout=100)
        (folder / "work").mkdir()
        return cls(folder / "venv", folder / "work")

    def program(self, name: str) -> str:
        """Returns the path of one of its programs."""
        return str(self.folder / "bin" / name)

    def install(self, *requirements: object) -> None:
        """Installs with pip. Raises AssertionError with pip's output if that fails."""
        self.run("python", "-m", "pip", "install", "--quiet", *map(str, requirements), timeout=400)

    def run(self, *command: str, code: int = 0, timeout: float = 100.0) -> str:
        """Runs one of its programs, which must end with exit code `code`. Returns its output, followed by its
        errors."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CAROUSEL_"))
        }
        done = subprocess.run(
            [self.program(command[0]), *command[1:]],
            cwd=self.work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def python(self, code: str, *arguments: str) -> str:
        """Runs Python code in the environment. Returns its output."""
        return self.run("python", "-W", "error", "-c", code, *arguments)

    def versions(self) -> dict[str, str]:
        """Returns the versions of the installed distributions by name, without pip's own."""
        listed = json.loads(self.run("python", "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"))
        return {one["name"].lower(): one["version"] for one in listed if one["name"] not in _OF_PIP}

    def top_names(self, distributions: Sequence[str]) -> set[str]:
        """Returns the top names that these distributions install in site-packages, without metadata, and the paths of
        other files."""
        code = (
            "import sys, importlib.metadata as m\n"
            "for name in sys.argv[1:]:\n"
            "    print(*(file for file in m.files(name)), sep='\\n')"
        )
        names = set()
        for line in self.python(code, *distributions).splitlines():
            path = Path(line)
            names.add(line if path.parts[0] == ".." else path.parts[0])
        return {name for name in names if not name.endswith(".dist-info")}
