"""Draws the dashboards from the queries in their files, with Grafana's layout.

    python -m deploy.dashboards.pictures http://127.0.0.1:9090 --seconds 600 --to docs/pictures

Needs matplotlib (the `train` extra). Lines and positions are the same as in Grafana; colours and fonts differ.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from deploy.dashboards.evaluate import Series, expand, legend, query_range

FOLDER = Path(__file__).parent.parent / "grafana" / "dashboards"
_CELL_INCHES = (0.62, 0.36)
_COLORS = {"green": "#37872d", "orange": "#e0752d", "red": "#c4162a"}


def formatted(value: float, unit: str) -> str:
    """Returns a value approximately as Grafana formats it."""
    if unit == "percentunit":
        return f"{value:.2%}" if value < 0.1 else f"{value:.0%}"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"
    base, prefixes = (1024, ("", " Ki", " Mi", " Gi")) if unit in ("bytes", "Bps") else (1000, ("", " k", " M", " G"))
    power = min(3, int(math.log(value, base))) if value >= base else 0
    suffix = {"bytes": "B", "Bps": "B/s", "cps": "/s", "reqps": "/s", "ops": "/s"}.get(unit, "")
    return f"{value / base**power:.3g}{prefixes[power]}{suffix}"


def draw(dashboard: dict[str, Any], prometheus: str, seconds: float, path: Path) -> None:
    """Draws one dashboard into the file `path`. Raises QueryError when Prometheus refuses a query."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    size = (24 * _CELL_INCHES[0], height * _CELL_INCHES[1])
    figure = plt.figure(figsize=size, facecolor="#f4f5f5")
    end = time.time()
    step = max(1.0, seconds / 240)
    variables = dict.fromkeys(("instance", "model", "version"), ".*") | {"__rate_interval": "20s"}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        left, top = place["x"] / 24, 1 - place["y"] / height
        if panel["type"] == "row":
            figure.text(left + 0.005, top - 0.5 / height, panel["title"], va="center", weight="bold", size=11)
            continue
        box = (left + 0.002, top - (place["h"] - 0.15) / height, place["w"] / 24 - 0.004, (place["h"] - 0.3) / height)
        figure.patches.append(Rectangle(box[:2], *box[2:], transform=figure.transFigure, facecolor="white", zorder=-1))
        figure.text(box[0] + 0.006, top - 0.75 / height, panel["title"], va="center", size=9, weight="bold")
        lines = [
            (legend(target["legendFormat"], one.labels), one)
            for target in panel["targets"]
            for one in query_range(prometheus, expand(target["expr"], variables), end - seconds, end, step)
        ]
        inner = (box[0] + 0.045, box[1] + 1.5 / height, box[2] - 0.055, box[3] - 2.6 / height)
        axes = figure.add_axes(inner if panel["type"] != "stat" else (box[0], box[1], box[2], box[3] - 0.6 / height))
        _fill(axes, panel, lines)
    figure.savefig(path, dpi=70)
    plt.close(figure)


def _fill(axes: Any, panel: dict[str, Any], lines: Sequence[tuple[str, Series]]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    if panel["type"] == "stat" or not lines:
        axes.axis("off")
    if not lines:
        axes.text(0.5, 0.5, defaults["noValue"], ha="center", va="center", color="#777777")
    elif panel["type"] == "stat":
        _stat(axes, defaults, lines)
    elif panel["type"] == "heatmap":
        _heatmap(axes, defaults["unit"], lines)
    else:
        _graph(axes, panel, defaults["unit"], lines)


def _stat(axes: Any, defaults: dict[str, Any], lines: Sequence[tuple[str, Series]]) -> None:
    states = {float(of): one for mapping in defaults.get("mappings", ()) for of, one in mapping["options"].items()}
    for index, (name, series) in enumerate(lines):
        value = series.points[-1][1]
        passed = [step["color"] for step in defaults["thresholds"]["steps"] if value >= (step["value"] or 0)]
        x = (index + 0.5) / len(lines)
        counted = {"text": formatted(value, defaults["unit"]), "color": passed[-1]}
        shown = states.get(value, counted)
        axes.text(x, 0.55, shown["text"], ha="center", va="center", size=17, color=_COLORS[shown["color"]])
        if len(lines) > 1:
            axes.text(x, 0.15, name, ha="center", va="center", size=8, color="#555555")


def _graph(axes: Any, panel: dict[str, Any], unit: str, lines: Sequence[tuple[str, Series]]) -> None:
    is_stacked = panel["fieldConfig"]["defaults"]["custom"].get("stacking", {}).get("mode") == "normal"
    times = sorted({when for _, one in lines for when, _ in one.points})
    below = np.zeros(len(times))
    for name, one in sorted(lines, key=lambda line: line[0]):
        known = dict(one.points)
        values = np.array([known.get(when, math.nan) for when in times])
        x = [(when - times[-1]) / 60 for when in times]
        if is_stacked:
            above = below + np.nan_to_num(values)
            (drawn,) = axes.plot(x, above, linewidth=0.8, label=name)
            axes.fill_between(x, below, above, alpha=0.3, color=drawn.get_color())
            below = above
        else:
            axes.plot(x, values, linewidth=1.0, label=name)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatted(value, unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} min" if value else "now"))
    axes.tick_params(labelsize=7)
    axes.grid(color="#e8e8e8", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    shown = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    some = list(shown)[:6]
    axes.legend(
        [shown[name] for name in some],
        some,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=3,
        fontsize=6.5,
        frameon=False,
    )


def _heatmap(axes: Any, unit: str, lines: Sequence[tuple[str, Series]]) -> None:
    ordered = sorted(lines, key=lambda line: float(line[1].labels["le"]))
    times = sorted({when for _, one in ordered for when, _ in one.points})
    cumulative = np.array([[dict(one.points).get(when, 0.0) for when in times] for _, one in ordered])
    counts = np.diff(cumulative, axis=0, prepend=0.0).clip(0.0)
    used = np.flatnonzero(counts.sum(axis=1))
    first, last = (used[0], used[-1] + 1) if used.size else (0, len(ordered))
    cells = np.ma.masked_less_equal(counts[first:last], 0.0)
    x = [(when - times[-1]) / 60 for when in times]
    axes.pcolormesh(x, np.arange(last - first), np.sqrt(cells), cmap="Spectral_r", shading="nearest")
    labels = [float(one.labels["le"]) for _, one in ordered[first:last]]
    every = max(1, len(labels) // 8)
    axes.set_yticks(range(0, len(labels), every), [f"≤ {formatted(le, unit)}" for le in labels[::every]])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} min" if value else "now"))
    axes.tick_params(labelsize=7)


def main() -> int:
    """Runs the command line. Returns the process's exit code."""
    parser = argparse.ArgumentParser(description="Draws what the dashboards show.")
    parser.add_argument("prometheus", help="its URL")
    parser.add_argument("--seconds", type=float, default=600.0, help="how far back")
    parser.add_argument("--to", type=Path, default=Path("docs/pictures"))
    given = parser.parse_args()
    mpl.use("Agg")
    for path in sorted(FOLDER.glob("*.json")):
        draw(json.loads(path.read_text()), given.prometheus, given.seconds, given.to / f"dashboard-{path.stem}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
