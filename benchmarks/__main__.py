"""`python -m benchmarks NAME`: one benchmark, or `all` of them, with a table and, with `--json`, a file; or `chaos`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import chaos
from benchmarks.measure import write
from benchmarks.subjects import make
from benchmarks.suite import SUITE


def main() -> None:
    """Runs what was named."""
    if sys.argv[1:2] == ["chaos"]:
        sys.exit(chaos.main(sys.argv[2:]))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*SUITE, "all"], help="; ".join(f"{n}: {f.__doc__}" for n, f in SUITE.items()))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    models = make()
    reports = []
    for name in SUITE if arguments.name == "all" else [arguments.name]:
        report = SUITE[name](models)
        report.print()
        reports.append(report)
    if arguments.json is not None:
        write(reports, arguments.json)
    if len(reports) > 1:
        print("\nsummary")
        for report in reports:
            for row in report.rows:
                bound = "" if row.bound is None else f"{row.must_be} {row.bound:g}"
                verdict = "ok" if row.is_met else "NO"
                print(f"  {report.name:<10} {row.subject:<24} {row.ratio:>8.3f}  {bound:<14} {verdict}")


if __name__ == "__main__":
    main()
