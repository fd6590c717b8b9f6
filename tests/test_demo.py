"""Tests of what `./scripts/demo` prints."""

from __future__ import annotations

import re
import subprocess
import sys

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from examples.demo import MODEL, MODELS, UNSEEN, histogram
from examples.translation import MODEL as TRANSLATOR
from examples.translation import SENTENCE
from tests.conftest import ROOT

ROW = re.compile(r"  (?: *(\d+\.\d\d) to  *(\d+\.\d\d) ms|more than  *(\d+\.\d\d) ms) +(\d+) (#+)")


def metrics(*observed: tuple[str, str, str, float]) -> str:
    """Returns the metrics of a server that has observed these steps. Each step is (graph, model, variant, seconds)."""
    registry = CollectorRegistry()
    labels = ["graph", "model", "variant"]
    latency = Histogram("carousel_step_latency_seconds", "x", labels, registry=registry, buckets=(0.001, 0.002, 0.005))
    for graph, model, variant, seconds in observed:
        latency.labels(graph, model, variant).observe(seconds)
    return generate_latest(registry).decode()


def test_the_histogram_is_of_one_model_and_adds_its_series() -> None:
    """Buckets are cumulative within one series only, so the series of one model must be read one by one."""
    text = metrics(
        ("step", "a", "fp32", 0.0005),
        ("step", "a", "fp32", 0.0015),
        ("step", "a", "int8", 0.0015),
        ("step", "a", "int8", 9.0),
        ("encoder", "a", "fp32", 0.0005),
        ("step", "b", "fp32", 0.003),
        ("step", "b", "fp32", 0.0005),
    )
    assert histogram(text, "a") == [
        "     0.00 to    1.00 ms     1 #",
        "     1.00 to    2.00 ms     2 ##",
        "  more than     5.00 ms     1 #",
    ]
    assert histogram(text, "c") == []


def test_the_demo_prints_its_results_and_latencies() -> None:
    command = [sys.executable, "-m", "examples.demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" right; first after ") == len(UNSEEN)
    assert "  position 7: the end." in done.stdout
    assert (f"  {SENTENCE}\n" in done.stdout) == (MODELS / TRANSLATOR).is_dir()
    assert done.stdout.endswith("stopped cleanly.\n")
    head, _, rest = done.stdout.partition(f"carousel_step_latency_seconds of the step graph of {MODEL}")
    assert head
    rows = [ROW.fullmatch(line) for line in rest.splitlines()[1:] if line.startswith("  ")]
    assert rows
    found = [row.groups() for row in rows if row is not None]
    assert len(found) == len(rows), rest
    limits = [float(limit) for lower, upper, most, _, _ in found for limit in (lower or most, upper or "inf")]
    assert limits == sorted(limits)
    assert all(len(bar) == min(60, int(count)) for _, _, _, count, bar in found)
    assert sum(int(count) for _, _, _, count, _ in found) > len(UNSEEN)
