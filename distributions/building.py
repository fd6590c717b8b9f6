"""Builds a wheel and an sdist of each distribution. The same source gives the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from distributions.staging import EPOCH, Checkout, stage_client, stage_server

_BUILD = (
    "import sys; sys.path.insert(0, '.'); import build_backend as backend;"
    " print(backend.build_sdist(sys.argv[1]), backend.build_wheel(sys.argv[1]))"
)


class BuildError(Exception):
    """A distribution cannot be built; the message is the reason."""


def build(root: Path, to: Path) -> list[Path]:
    """Builds wheels and sdists of the checkout at `root` in the folder `to`. Returns their paths, the client's first.

    The files in them have the date of SOURCE_DATE_EPOCH or, without it, of the last commit. Raises BuildError.
    """
    checkout, epoch = Checkout.at(root), os.environ.get("SOURCE_DATE_EPOCH") or _last_commit(root)
    to.mkdir(parents=True, exist_ok=True)
    built: list[Path] = []
    with tempfile.TemporaryDirectory() as folder:
        for staged in (
            stage_client(checkout, Path(folder) / "client", epoch),
            stage_server(checkout, Path(folder) / "server", epoch),
        ):
            built += build_staged(staged, to)
    return built


def build_staged(source: Path, to: Path) -> list[Path]:
    """Builds the sdist and the wheel of one staged source, with the date that was staged. Raises BuildError."""
    command = [sys.executable, "-B", "-c", _BUILD, str(to.resolve())]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if done.returncode:
        if "No module named 'flit_core'" in done.stderr:
            raise BuildError("building needs flit-core: run ./scripts/setup dev, or pip install flit-core")
        raise BuildError(f"{source.name} cannot be built:\n{done.stderr}")
    return [to / name for name in done.stdout.split()]


def _last_commit(root: Path) -> str:
    command = ["git", "-C", str(root), "log", "-1", "--format=%ct"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return EPOCH
    return done.stdout.strip() or EPOCH
