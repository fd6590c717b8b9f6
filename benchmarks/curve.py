"""Latency against load, by the open-loop generator: a table and a plot."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.measure import Report, Row
from benchmarks.processes import Seen, load, server
from examples.local_service import local_service

STREAMS = 64
SHARES = (0.1, 0.25, 0.5, 0.65, 0.8, 0.9, 1.0, 1.1)
"""Offered loads, over what the echo server answers in a closed loop."""
PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "load.svg"


def open_loop(models: Path) -> Report:
    """Latency of steps that arrive at random, over that of the echo server under the same load, to past its limit."""
    report = Report("open_loop", "p50 latency from the scheduled arrival, over the echo server's at the same load")
    curves: dict[str, list[tuple[float, Seen]]] = {"carousel": [], "echo": []}
    with local_service(models) as service, server("echo") as echo_server:
        targets = {"carousel": service.target, "echo": echo_server}
        capacity = load("lockstep", echo_server, streams=STREAMS)["per_second"]
        for share in SHARES:
            rate = round(share * capacity)
            for name, target in targets.items():
                seen = load("arrivals", target, streams=STREAMS, rate=rate, seconds=3.0)
                curves[name].append((rate, seen))
            ours, theirs = curves["carousel"][-1][1], curves["echo"][-1][1]
            ratio = ours["p50_s"] / theirs["p50_s"]
            report.rows.append(
                Row(f"{share:.2f} = {rate:,}/s", ours["p50_s"], theirs["p50_s"], ratio, [ratio], "s", None, "at most")
            )
    _print(curves)
    _draw(curves)
    return report


def _print(curves: dict[str, list[tuple[float, Seen]]]) -> None:
    print(
        f"\n  {'offered/s':>10} {'server':<10} {'answered/s':>10} {'p50 ms':>9} {'p99 ms':>9} {'lag p50, p99 ms':>17}"
    )
    for points in zip(*curves.values(), strict=True):
        for name, (rate, seen) in zip(curves, points, strict=True):
            lag = f"{seen['lag_p50_s'] * 1e3:.2f}, {seen['lag_p99_s'] * 1e3:.2f}"
            times = f"{seen['p50_s'] * 1e3:>9.2f} {seen['p99_s'] * 1e3:>9.2f}"
            print(f"  {rate:>10,} {name:<10} {seen['per_second']:>10,.0f} {times} {lag:>17}")


def _draw(curves: dict[str, list[tuple[float, Seen]]]) -> None:
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, points), colour in zip(curves.items(), ("#0b6e99", "#999999"), strict=True):
        rates = [rate for rate, _ in points]
        for percentile, style in (("p50_s", "-"), ("p99_s", "--")):
            values = [seen[percentile] * 1e3 for _, seen in points]
            axes.plot(rates, values, style, marker="o", markersize=3, color=colour, label=f"{name}, {percentile[:3]}")
    axes.set_yscale("log")
    axes.set_xlabel("steps offered a second (Poisson arrivals over 64 sessions, one token each)")
    axes.set_ylabel("latency from the scheduled arrival, ms")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})
