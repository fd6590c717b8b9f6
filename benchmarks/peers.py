"""`python -m benchmarks peers`: Carousel on both wires beside Triton's sequence batcher and a hand-written server.

All servers run at the same time. They are measured in turn, over the same graph, with the native load generator. On
first use, Triton is installed from PyPI into a separate environment: see `benchmarks.triton.environment`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from benchmarks import native_load
from benchmarks.bare import Array, load_step
from benchmarks.measure import Report, Sample, row_of, write
from benchmarks.peers_curve import Curves, draw, print_curves
from benchmarks.processes import Running, Seen, server, service
from benchmarks.restarts import Restarted
from benchmarks.setup import Setup
from benchmarks.subjects import SMALL, make
from benchmarks.traffic import TRAFFIC, Load, Traffic
from benchmarks.triton import messages
from benchmarks.triton.environment import TRITON_VERSION, Environment
from benchmarks.triton.server import JEMALLOC, triton

PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "peers.svg"
ENVOY, GRPCIO, TRITON, BY_HAND = "Carousel, envoy", "Carousel, grpcio", "Triton", "by hand"
PAIRS = ((ENVOY, TRITON), (GRPCIO, TRITON), (ENVOY, BY_HAND))
"""The pairs of servers that are compared."""
BOUNDS = {16: 2.2, 64: 2.6}
"""What the first pair's ratio must be at least, by number of streams."""
STREAMS = 64
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 0.9, 1.0)
"""Offered loads, as a share of what Carousel on Envoy answers in a closed loop."""
KEPT_UP = 0.95
"""A server that answers less than this share of the requests in the scheduled time gets no higher load."""
_CHECKED = [3, 1, 4, 1, 5, 9, 2, 6]

Measure = Callable[[str, Load], Seen]
"""Measures one server. Takes the traffic's name (`lockstep` or `arrivals`) and the load."""


def main(arguments: list[str]) -> int:
    """Runs the command. Returns the process's exit code."""
    defaults = Setup()
    parser = argparse.ArgumentParser(prog="python -m benchmarks peers", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument(
        "--seconds", type=float, default=defaults.seconds, help="seconds of one measurement (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=defaults.rounds, help="measurements of each side (%(default)s)")
    parser.add_argument("--picture", type=Path, default=PICTURE, metavar="FILE", help="where the plot is written")
    parser.add_argument("--no-curve", action="store_true", help="leave out latency against load, and the plot")
    parser.add_argument("--no-jemalloc", action="store_true", help="run Triton with the C library's memory allocator")
    given = parser.parse_args(arguments)
    if given.rounds < 1 or given.seconds <= 0:
        parser.error("--seconds and --rounds must be above 0")
    if reason := native_load.why_not():
        parser.error(f"the native load generator is not available ({reason}), and no other supports Triton's protocol")
    setup = Setup(models=make((SMALL,)), seconds=given.seconds, rounds=given.rounds, picture=given.picture)
    environment = Environment()
    environment.make()
    preload = "" if given.no_jemalloc else JEMALLOC
    with ExitStack() as stack:
        failing = stack.enter_context(Restarted(TRITON, lambda: triton(environment, SMALL.name, SMALL.folder, preload)))
        check(failing)
        measures = {TRITON: measure_triton(failing), **stack.enter_context(_others(setup))}
        report = peers(setup, measures)
        how = f"Triton {TRITON_VERSION}, sequence batcher, Python backend, {preload or 'without jemalloc'}"
        report.notes += [how, failing.summary()]
        report.print()
        if not given.no_curve:
            capacity = max(row.ours for row in report.rows)
            curves = latency_against_load(setup, measures, capacity)
            print_curves(curves)
            draw(curves, setup.picture)
            print(f"\n  {failing.summary()}")
    if given.json is not None:
        write([report], given.json)
    return 0


def peers(setup: Setup, measures: dict[str, Measure]) -> Report:
    """Measures steps of single tokens per second at 16 and 64 streams."""
    report = Report("peers", "steps/s of Carousel over those of its peers")
    for streams, bound in BOUNDS.items():
        load = setup.load(streams=streams)
        rounds: list[dict[str, Sample]] = []
        for _ in range(setup.rounds + 1):
            seen = {name: measure("lockstep", load) for name, measure in measures.items()}
            rounds.append({name: Sample(one["per_second"], one.get("cpu_us")) for name, one in seen.items()})
        for pair in PAIRS:
            ours, theirs = pair
            samples = [(one[ours], one[theirs]) for one in rounds[1:]]  # the first round is a warm-up
            subject = f"{streams}: {ours} / {theirs}"
            report.rows.append(row_of(subject, samples, unit="steps/s", bound=bound if pair == PAIRS[0] else None))
    return report


def latency_against_load(setup: Setup, measures: dict[str, Measure], capacity: float) -> Curves:
    """Measures the latency of steps that arrive at random, for each server up to the first load that it cannot answer.

    capacity: steps per second; the offered loads are the SHARES of it.
    """
    curves: Curves = {name: [] for name in measures}
    going = dict(measures)
    for share in SHARES:
        rate = round(share * capacity)
        load = setup.load(streams=STREAMS, rate=rate, seconds=1.5 * setup.seconds)
        for name, measure in list(going.items()):
            seen = measure("arrivals", load)
            curves[name].append((rate, seen))
            if seen["steps"] < KEPT_UP * (seen["requests"] + seen["unanswered"] + seen["errors"]):
                del going[name]
    return curves


def measure_triton(failing: Restarted) -> Measure:
    """Returns a function that measures Triton, and repeats the measurement when Triton fails."""
    traffic = {"lockstep": messages.lockstep, "arrivals": messages.arrivals}
    return lambda name, load: failing.seen(lambda at: _replay(at, traffic[name](load), load))


def check(failing: Restarted) -> None:
    """Raises RuntimeError when Triton's tokens differ from the graph's."""
    bare = load_step(SMALL.folder)
    state, lengths, expected = bare.zeros(1), np.ones(1, np.int64), []
    for token in _CHECKED:
        chosen: Array = np.array([[token]], np.int64)
        chosen, state = bare.choose(chosen, lengths, state)
        expected.append(int(chosen[0, 0]))
    answered: list[int] = []

    def ask(at: Running) -> Seen:
        answered[:] = messages.next_tokens(at.target, SMALL.name, _CHECKED)
        return {}

    failing.seen(ask)
    if answered != expected:
        raise RuntimeError(f"Triton returned {answered}, but the graph returns {expected}")


def _replay(at: Running, traffic: Traffic, load: Load) -> Seen:
    return native_load.replay(at.target, traffic, load, at.pid)


@contextmanager
def _others(setup: Setup) -> Iterator[dict[str, Measure]]:
    def measure(at: Running) -> Measure:
        return lambda name, load: _replay(at, TRAFFIC[name](load), load)

    with (
        service(setup.models, "envoy") as envoy,
        service(setup.models, "grpcio") as grpcio,
        server("grpcio", "naive", str(setup.small.folder), "one") as by_hand,
    ):
        yield {ENVOY: measure(envoy), GRPCIO: measure(grpcio), BY_HAND: measure(by_hand)}
