"""`python -m benchmarks NAME` runs one benchmark, or `all` of them, and prints a table. `--json` also writes a file.

Other commands, each with `--help`: `path` counts the code that a token passes through, `simulate` tests the session
layer under random faults, `chaos` kills, pauses and disconnects real servers, `takeover` measures how fast another
server resumes a killed server's sessions, and `peers` measures Triton and a hand-written server beside Carousel.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import chaos, path, peers, simulate, takeover
from benchmarks.measure import Report, write
from benchmarks.setup import Setup
from benchmarks.subjects import make
from benchmarks.suite import SUITE
from service.settings import Settings
from service.wire.choice import choose

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "chaos": chaos.main,
    "path": path.main,
    "peers": peers.main,
    "simulate": simulate.main,
    "takeover": takeover.main,
}


def main() -> int:
    """Runs the command that `sys.argv` names. Returns the process's exit code."""
    if sys.argv[1:] and sys.argv[1] in COMMANDS:
        return COMMANDS[sys.argv[1]](sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*SUITE, "all"], help="; ".join(f"{n}: {f.__doc__}" for n, f in SUITE.items()))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument(
        "--seconds", type=float, default=Setup().seconds, help="seconds of one measurement (%(default)s)"
    )
    parser.add_argument(
        "--held", type=float, default=Setup().held_s, help="seconds of one measurement of `tail` (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=Setup().rounds, help="measurements of each side (%(default)s)")
    wires = ("grpcio", "envoy")
    auto, _ = choose(Settings(wire="auto"))
    parser.add_argument(
        "--wire",
        choices=wires,
        default=auto,
        help="wire of the service and of the servers it is compared with (%(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds <= 0 or arguments.held <= 0:
        parser.error("--seconds, --held and --rounds must be above 0")
    setup = Setup(
        models=make(),
        seconds=arguments.seconds,
        held_s=arguments.held,
        rounds=arguments.rounds,
        wire=arguments.wire,
    )
    reports = []
    for name in SUITE if arguments.name == "all" else [arguments.name]:
        report = SUITE[name](setup)
        report.print()
        reports.append(report)
    if arguments.json is not None:
        write(reports, arguments.json)
    if len(reports) > 1:
        _summarise(reports)
    return 0


def _summarise(reports: list[Report]) -> None:
    print("\nsummary")
    for report in reports:
        for row in report.rows:
            bound = "" if row.bound is None else f"{row.must_be} {row.bound:g}"
            verdict = "ok" if row.is_met else "NO"
            cpu = "" if row.cpu_us is None else f"{row.cpu_us:,.3g} us"
            print(f"  {report.name:<10} {row.subject:<24} {row.ratio:>8.3f}  {bound:<14} {verdict:<3} {cpu}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
