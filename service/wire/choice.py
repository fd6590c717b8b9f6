"""Chooses the wire."""

from __future__ import annotations

import sys

from service.settings import Settings
from service.wire.envoy import folder, library


def choose(settings: Settings) -> tuple[str, str]:
    """Returns the wire's name and the reason. Raises MissingError if `envoy` is set and cannot be used."""
    if settings.wire == "grpcio":
        return "grpcio", "wire = grpcio"
    try:
        if not sys.platform.startswith("linux"):
            raise library.MissingError("Envoy runs only on Linux")
        library.module_path()
        library.libpython_path()
        folder.check()
    except library.MissingError as error:
        if settings.wire == "envoy":
            raise library.MissingError(f"wire = envoy: {error}") from error
        return "grpcio", f"wire = auto, and Envoy cannot be used: {error}"
    return "envoy", f"wire = {settings.wire}"
