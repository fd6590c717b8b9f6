"""Latency against load, measured with an open-loop generator: a table and a plot.

`benchmarks.arrivals` explains the method: arrivals are a Poisson process of a given rate, and the latency of a step
counts from its scheduled arrival. In a closed loop a slow server would receive fewer requests and look better than it
is ("coordinated omission").
"""

from __future__ import annotations

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.measure import Report, Row
from benchmarks.processes import Seen
from benchmarks.setup import Setup

STREAMS = 64
SHARES = (0.1, 0.25, 0.5, 0.65, 0.8, 0.9, 0.95, 1.0, 1.1)
"""Offered loads, as a share of what the service answers in a closed loop."""
Curves = dict[str, list[tuple[float, Seen]]]


def open_loop(setup: Setup) -> Report:
    """Latency of steps that arrive at random, over that of the echo server at the same load, up to more than the
    service can answer."""
    report = setup.report("open_loop", "p50 latency from the due time, over the echo server's at the same load")
    curves: Curves = {"carousel": [], "echo": []}
    with setup.service() as carousel, setup.server("echo") as echo_server:
        servers = {"carousel": carousel, "echo": echo_server}
        closed = [setup.sample("lockstep", servers["carousel"], setup.load(streams=STREAMS)) for _ in range(3)]
        capacity = statistics.median(sample.value for sample in closed)
        for share in SHARES:
            rate = round(share * capacity)
            load = setup.load(streams=STREAMS, rate=rate, seconds=1.5 * setup.seconds)
            for name, at in servers.items():
                curves[name].append((rate, setup.seen("arrivals", at, load)))
            ours, theirs = curves["carousel"][-1][1], curves["echo"][-1][1]
            ratio = ours["p50_s"] / theirs["p50_s"]
            times = (ours["p50_s"], theirs["p50_s"])
            cpu = (ours.get("cpu_us"), theirs.get("cpu_us"))
            subject = f"{share:.2f} = {rate:,}/s"
            report.rows.append(Row(subject, *times, ratio, [ratio], "s", None, "at most", *cpu))
    _print(curves)
    _draw(curves, setup.picture)
    return report


def _print(curves: Curves) -> None:
    titles = ("offered/s", "server", "answered/s", "p50 ms", "p99 ms", "refused", "lag p50, p99 ms")
    print("\n  {:>10} {:<10} {:>10} {:>9} {:>9} {:>8} {:>17}".format(*titles))
    for points in zip(*curves.values(), strict=True):
        for name, (rate, seen) in zip(curves, points, strict=True):
            lag = f"{seen['lag_p50_s'] * 1e3:.2f}, {seen['lag_p99_s'] * 1e3:.2f}"
            times = f"{seen['p50_s'] * 1e3:>9.2f} {seen['p99_s'] * 1e3:>9.2f} {seen.get('errors', 0):>8,.0f}"
            print(f"  {rate:>10,} {name:<10} {seen['per_second']:>10,.0f} {times} {lag:>17}")


def _draw(curves: Curves, picture: Path) -> None:
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, points), colour in zip(curves.items(), ("#0b6e99", "#999999"), strict=True):
        rates = [rate for rate, _ in points]
        for percentile, style in (("p50_s", "-"), ("p99_s", "--")):
            values = [seen[percentile] * 1e3 for _, seen in points]
            axes.plot(rates, values, style, marker="o", markersize=3, color=colour, label=f"{name}, {percentile[:3]}")
    axes.set_yscale("log")
    axes.set_xlabel("steps offered a second (Poisson arrivals over 64 sessions, one token each)")
    axes.set_ylabel("latency from the time when a step was due, ms")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(frameon=False)
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})
