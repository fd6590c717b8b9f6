"""Starts the command, or says how to install what it needs. Answers `--version` without the extra `cli`."""

from __future__ import annotations

import sys

from carousel._version import __version__


def main() -> None:
    """Runs the command line, and exits."""
    if sys.argv[1:] == ["--version"]:
        print(f"carousel {__version__}")
        return
    try:
        from carousel.cli.app import main as run  # noqa: PLC0415  # it may not be installed
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit("the command line needs more: pip install 'carousel-serving[cli]'")
    run()
