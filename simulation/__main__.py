"""`python -m simulation`: runs seeds for some time, or replays one seed."""

from __future__ import annotations

import argparse
import sys

from simulation.bundles import MODELS
from simulation.run import Failure, main, run_seed, shrink


def _print(failure: Failure) -> None:
    print(failure, flush=True)


def run() -> int:
    """Parses the command line and runs. Returns the exit code: 0 when nothing was violated."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="run seeds for so many seconds (default: 60)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seed", type=int, help="replay only this seed")
    parser.add_argument("--verbose", action="store_true", help="print every event")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="models to serve; default: all")
    parser.add_argument("--no-shrink", action="store_true", help="do not search for a shorter failing script")
    options = parser.parse_args()
    if options.seed is None:
        result = main(
            options.seconds, options.first, models=options.models, on_failure=None if options.no_shrink else _print
        )
        for one in result["violations"] if options.no_shrink else ():
            print(f"seed {one['seed']}: {one['violation']}")
        print(f"{result['seeds']} seeds, {result['events']} events, {len(result['violations'])} with a violation")
        return 1 if result["violations"] else 0
    journal = run_seed(options.seed, options.models)
    if options.verbose:
        print("\n".join(journal.trace))
    if not journal.violations:
        print(f"seed {options.seed}: no violation in {journal.num_events} events")
        return 0
    if not options.verbose:
        print("\n".join(journal.violations) if options.no_shrink else shrink(options.seed, journal, options.models))
    return 1


if __name__ == "__main__":
    sys.exit(run())
