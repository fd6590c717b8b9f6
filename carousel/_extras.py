"""How to install an extra, wherever this runs: in a checkout, in the project's image, or from a wheel."""

from __future__ import annotations

import shlex
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from carousel._version import __version__

IMAGE_MARK = "carousel-image"
"""A file in the environment of the project's image, which has no pip."""

IMAGE_EXTRAS = ("cli", "encryption", "envoy", "tracing")
"""What an image may be built with."""


def how_to_install(extra: str, *, distribution: str) -> str:
    """The command, for a shell, that installs `extra` of `distribution` beside this code."""
    root = Path(__file__).parent.parent
    if (root / "pyproject.toml").is_file() and (root / "scripts" / "setup").is_file():
        return f"./scripts/setup {extra} (in {root})"
    if (Path(sys.prefix) / IMAGE_MARK).is_file():
        if extra not in IMAGE_EXTRAS:
            return f"./scripts/setup {extra} (in a checkout; an image cannot have it)"
        return f"docker build -f deploy/Dockerfile --build-arg EXTRAS={extra} -t carousel . (in a checkout)"
    python, wanted = shlex.quote(sys.executable), f"'{distribution}[{extra}]=={__version__}'"
    if PathFinder.find_spec("pip") is None:  # importlib.util's would run a hook of setuptools, which swaps distutils
        return f"pip --python {python} install {wanted} (with a pip of another environment; this one has none)"
    return f"{python} -m pip install {wanted}"
