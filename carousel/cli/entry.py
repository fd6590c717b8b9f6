"""Starts the command line, or says how to install what it needs. `--version` works without the extra `cli`."""

from __future__ import annotations

import sys

from carousel._extras import how_to_install
from carousel._version import __version__

_INTERRUPTED = 130


def main() -> None:
    """Runs the command line and exits."""
    if sys.argv[1:] == ["--version"]:
        print(f"carousel {__version__}")
        return
    if sys.stdout is None:  # closed by the shell's `>&-`
        sys.exit("error: standard output is closed: send it to a file, a pipe or /dev/null")
    try:
        from carousel.cli.app import main as run  # noqa: PLC0415  # it may not be installed
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"the command line needs {error.name}: {how_to_install('cli', distribution='carousel-client')}")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    run()
