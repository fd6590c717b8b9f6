"""Draws heat maps of gates, states and attention over tokens."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from carousel.cli.look import Look
from carousel.cli.reading import visible

_MAX_LABELS = 48
_MAX_LABEL = 2
"""The most characters of a label that is not rotated."""


def draw(look: Look, path: Path) -> None:
    """Writes a PNG, or for `.html` one self-contained page. Raises OSError."""
    figures = [_draw_layer(look, layer, traces) for layer, traces in look.layers.items()]
    if path.suffix.lower() in (".html", ".htm"):
        path.write_text(_page(look, figures), encoding="utf-8")
        return
    _stack(figures, path)


def _draw_layer(look: Look, layer: str, traces: Sequence[tuple[str, str]]) -> Figure:
    is_alignment = len(traces) == 1 and traces[0][1] == layer
    steps = len(look.steps)
    if is_alignment:
        figure = Figure(
            figsize=(max(4.0, 1.5 + 0.32 * len(look.source)), max(2.5, 1.2 + 0.26 * steps)),
            dpi=110,
            layout="constrained",
        )
        _draw_alignment(figure.subplots(), look, look.traces[layer])
    else:
        columns = min(3, len(traces))
        rows = -(-len(traces) // columns)
        width = max(3.2, 1.0 + 0.2 * min(steps, 60))
        figure = Figure(figsize=(columns * width, rows * 2.7 + 0.4), dpi=110, layout="constrained")
        axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        for axis, (what, name) in zip(axes, traces, strict=False):
            _draw_units(axis, look, what, look.traces[name])
        for axis in axes[len(traces) :]:
            axis.set_visible(False)
    figure.suptitle(f"{look.model}: {layer}")
    return figure


def _draw_units(axis: Axes, look: Look, what: str, values: NDArray[np.float32]) -> None:
    """Draws units over steps. Gates are scaled from 0 to 1, other values symmetrically around 0."""
    is_gate = what.endswith("_gate")
    limit = 1.0 if is_gate else max(float(np.abs(values).max(initial=0.0)), 1e-6)
    image = axis.imshow(
        values.T,
        aspect="auto",
        interpolation="nearest",
        cmap="viridis" if is_gate else "RdBu_r",
        vmin=0.0 if is_gate else -limit,
        vmax=limit,
    )
    axis.set(title=what.replace("_", " "), ylabel="unit")
    _label(axis, look.steps)
    if axis.figure is not None:
        axis.figure.colorbar(image, ax=axis, fraction=0.05)


def _draw_alignment(axis: Axes, look: Look, values: NDArray[np.float32]) -> None:
    image = axis.imshow(values, aspect="auto", interpolation="nearest", cmap="magma", vmin=0.0, vmax=1.0)
    axis.set(xlabel="source", ylabel="says next")
    labels = [_label_of(token) for token in look.source]
    axis.set_xticks(range(len(labels)), labels, rotation=90 if _are_long(labels) else 0)
    axis.set_yticks(range(len(look.predictions)), [_label_of(token) for token in look.predictions])
    if axis.figure is not None:
        axis.figure.colorbar(image, ax=axis, fraction=0.05, label="weight")


def _label(axis: Axes, steps: Sequence[str]) -> None:
    every = -(-len(steps) // _MAX_LABELS)
    places = range(0, len(steps), every)
    labels = [_label_of(steps[place]) for place in places]
    axis.set_xticks(list(places), labels, fontsize="x-small", rotation=90 if _are_long(labels) else 0)


def _are_long(labels: Sequence[str]) -> bool:
    return max(map(len, labels), default=0) > _MAX_LABEL


def _label_of(token: str) -> str:
    """Returns a token as a label, escaped so that matplotlib does not read mathematics in it."""
    return visible(token).replace("$", r"\$")


def _stack(figures: Sequence[Figure], path: Path) -> None:
    """Writes the figures below each other, as one PNG."""
    images = []
    for figure in figures:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="raw")
        width, height = (int(value) for value in figure.canvas.get_width_height())
        images.append(np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4))
    widest = max(image.shape[1] for image in images)
    white = [np.full((image.shape[0], widest - image.shape[1], 4), 255, np.uint8) for image in images]
    rows = [np.concatenate([image, margin], axis=1) for image, margin in zip(images, white, strict=True)]
    whole = np.concatenate(rows)
    canvas = Figure(figsize=(whole.shape[1] / 100, whole.shape[0] / 100), dpi=100)
    canvas.figimage(whole)
    canvas.savefig(path, dpi=100)


def _page(look: Look, figures: Sequence[Figure]) -> str:
    """Returns a self-contained page: the steps as a table, and the figures as inline SVG."""
    drawn = []
    for figure in figures:
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
        drawn.append(
            f"<figure>{buffer.getvalue().partition('<svg')[1]}{buffer.getvalue().partition('<svg')[2]}</figure>"
        )
    rows = "".join(
        f"<tr><td>{place}</td><td><code>{html.escape(visible(step))}</code></td>"
        f"<td><code>{html.escape(visible(prediction))}</code></td></tr>"
        for place, (step, prediction) in enumerate(zip(look.steps, look.predictions, strict=True))
    )
    title = html.escape(f"Inside {look.model}")
    source = f"<p>Source: <code>{html.escape(' '.join(look.source))}</code></p>" if look.source else ""
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title><style>"
        "body{font-family:system-ui,sans-serif;margin:2rem;max-width:80rem}table{border-collapse:collapse}"
        "td,th{padding:.15rem .8rem;text-align:left;border-bottom:1px solid #ddd}figure{margin:1.5rem 0}"
        "svg{max-width:100%;height:auto}</style></head><body>"
        f"<h1>{title}</h1>{source}<table><tr><th>step</th><th>reads</th><th>says next</th></tr>{rows}</table>"
        f"{''.join(drawn)}</body></html>\n"
    )
