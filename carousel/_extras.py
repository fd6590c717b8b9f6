"""Says how to install an extra: in a checkout, in the project's image, or from a wheel."""

from __future__ import annotations

import shlex
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from carousel._version import __version__

IMAGE_MARK = "carousel-image"
"""A file in the environment of the project's image. The image has no pip."""

IMAGE_EXTRAS = ("cli", "encryption", "envoy", "tracing")
"""The extras with which an image can be built."""


def how_to_install(extra: str, *, distribution: str) -> str:
    """Returns the shell command that installs `extra` of `distribution` into this environment."""
    root = Path(__file__).parent.parent
    if (root / "pyproject.toml").is_file() and (root / "scripts" / "setup").is_file():
        return f"./scripts/setup {extra} (in {root})"
    if (Path(sys.prefix) / IMAGE_MARK).is_file():
        if extra not in IMAGE_EXTRAS:
            return f"./scripts/setup {extra} (in a checkout; an image cannot have it)"
        return f"docker build -f deploy/Dockerfile --build-arg EXTRAS={extra} -t carousel . (in a checkout)"
    python, wanted = shlex.quote(sys.executable), f"'{distribution}[{extra}]=={__version__}'"
    if PathFinder.find_spec("pip") is None:  # importlib.util's would run setuptools' hook, which swaps distutils
        return f"pip --python {python} install {wanted} (with a pip of another environment; this one has none)"
    return f"{python} -m pip install {wanted}"
