"""Starts the command, or names the package that must be installed for it."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line, and exits."""
    try:
        from carousel.cli.app import main as run  # noqa: PLC0415  # it may not be installed
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit("the command line needs more: pip install 'carousel-serving[cli]'")
    run()
