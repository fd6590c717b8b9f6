"""Latency against load of several servers: a table and a plot."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.processes import Seen

Curves = dict[str, list[tuple[float, Seen]]]
"""For each server, the offered loads in steps per second, and the figures measured at each."""
_COLOURS = ("#76b900", "#0b6e99", "#7fb8d0", "#999999")


def print_curves(curves: Curves) -> None:
    """Prints a line for each server and load."""
    titles = ("server", "offered/s", "answered/s", "p50 ms", "p99 ms", "refused", "CPU us", "lag p99 ms")
    print("\n  {:<18} {:>10} {:>10} {:>9} {:>9} {:>8} {:>8} {:>10}".format(*titles))
    for name, points in curves.items():
        for rate, seen in points:
            times = f"{seen['p50_s'] * 1e3:>9.2f} {seen['p99_s'] * 1e3:>9.2f} {seen['errors']:>8,.0f}"
            server = f"{seen.get('cpu_us', 0):>8.0f} {seen['lag_p99_s'] * 1e3:>10.2f}"
            print(f"  {name:<18} {rate:>10,.0f} {seen['per_second']:>10,.0f} {times} {server}")


def draw(curves: Curves, picture: Path) -> None:
    """Writes an SVG with the median in one panel and the 99th percentile in the other."""
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, percentile in zip(panels, ("p50", "p99"), strict=True):
        for (name, points), colour in zip(curves.items(), _COLOURS, strict=True):
            rates = [rate for rate, _ in points]
            values = [seen[f"{percentile}_s"] * 1e3 for _, seen in points]
            axes.plot(rates, values, marker="o", markersize=3, color=colour, label=name)
        axes.set_yscale("log")
        axes.set_title(percentile)
        axes.grid(visible=True, which="both", alpha=0.25)
    panels[0].set_ylabel("latency from the time when a step was due, ms")
    panels[0].legend(frameon=False)
    figure.supxlabel("steps offered a second (Poisson arrivals over 64 sessions, one token each)")
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})
