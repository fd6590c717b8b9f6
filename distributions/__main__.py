"""`python -m distributions --to FOLDER` builds the wheels and sdists of this checkout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distributions.building import BuildError, build


def main() -> int:
    """Runs the command line. Returns the process's exit code: 0 when everything was built."""
    parser = argparse.ArgumentParser(description="Builds wheels and sdists of this checkout.")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where they are written")
    try:
        for path in build(Path(__file__).parents[1], parser.parse_args().to):
            print(path)
    except BuildError as error:
        print(f"no distribution was built: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
