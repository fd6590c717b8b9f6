"""`docs/metrics.md`, made of the metrics themselves: `python -m service.telemetry.reference > docs/metrics.md`."""

from __future__ import annotations

from service.telemetry.instruments import Counter, Gauge, Histogram
from service.telemetry.metrics import Metrics

_HEAD = """# Metrics

What `/metrics` tells Prometheus, on `metrics_port`. Made by `./scripts/generate`: do not edit.

Durations are in seconds, sizes in bytes. A label never holds what a client can choose freely: `model`, `version` and
`variant` are those of the repository, `method` is one of ours, and `reason`, `code`, `request` and the like are fixed
lists. A histogram's `_count` is the number of requests, batches or whatever is observed, and serves as a counter.
"""
_TAIL = """
Beside these there are `process_*` (CPU, memory, file descriptors, start time), `python_gc_*` and `python_info`, of the
Prometheus client library.
"""


def markdown() -> str:
    """The whole page."""
    parts = [_HEAD]
    for section, instruments in Metrics().sections.items():
        parts.append(f"\n## {section}\n\n| name | type | labels | what |\n| --- | --- | --- | --- |\n")
        parts += map(_row, instruments)
    return "".join([*parts, _TAIL])


def _row(instrument: Counter | Gauge | Histogram) -> str:
    labels = ", ".join(f"`{name}`" for name in instrument.label_names)
    text = instrument.text
    if isinstance(instrument, Histogram):
        text += f" ({len(instrument.bounds)} buckets, {instrument.bounds[0]:g} to {instrument.bounds[-1]:g})"
    return f"| `{instrument.name}` | {instrument.kind} | {labels} | {text} |\n"


if __name__ == "__main__":
    print(markdown(), end="")
