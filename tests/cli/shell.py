"""Runs the command line in a child process, as users do."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.fork_server import run

COMMAND = [sys.executable, "-m", "carousel"]


class Shell:
    """Runs commands against one server."""

    def __init__(self, target: str) -> None:
        self.target = target

    def run(self, *words: str, typed: str | bytes = "", code: int = 0) -> subprocess.CompletedProcess[bytes]:
        """Runs a command, which must end with exit code `code`. Returns the completed process."""
        given = typed if isinstance(typed, bytes) else typed.encode()
        done = run("carousel", "--target", self.target, *words, typed=given)
        assert done.returncode == code, done.stderr.decode()
        return done

    def out(self, *words: str, typed: str = "") -> str:
        return self.run(*words, typed=typed).stdout.decode()

    def json(self, *words: str) -> Any:
        return json.loads(self.out(*words, "--json"))
