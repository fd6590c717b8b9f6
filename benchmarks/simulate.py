"""`python -m benchmarks simulate`: tests the session layer under faults drawn from seeds, for a given time."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> int:
    """Runs the command line. Returns the process's exit code: 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks simulate", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parsed = parser.parse_args(arguments)
    # imported only here, so that other benchmarks do not need it
    figures: dict[str, Any] = import_module("simulation.run").main(parsed.seconds, parsed.seed)
    for name, value in figures.items():
        print(f"  {name:<12} {value}")
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if figures["violations"] else 0
