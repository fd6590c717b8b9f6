"""The build backend of the checkout: supports editable installs, and refuses to build a wheel or an sdist.

Such a wheel would install `service`, `export` and `models` as top-level packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from setuptools.build_meta import (
    build_editable,
    get_requires_for_build_editable,
    prepare_metadata_for_build_editable,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "prepare_metadata_for_build_editable",
]

_REFUSAL = (
    "a checkout is installed with ./scripts/setup, or pip install --editable; ./scripts/build makes wheels and sdists"
)


def build_wheel(folder: str, settings: Mapping[str, Any] | None = None, metadata: str | None = None) -> NoReturn:
    """Raises SystemExit with a text that says what to do instead."""
    raise SystemExit(_REFUSAL)


def build_sdist(folder: str, settings: Mapping[str, Any] | None = None) -> NoReturn:
    """Raises SystemExit with a text that says what to do instead."""
    raise SystemExit(_REFUSAL)
