"""The instruments of the hot path read like prometheus_client's own."""

from __future__ import annotations

import threading

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.instruments import Counter, Gauge, Histogram

BOUNDS = (0.1, 0.5, 1.0, 10.0)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(registry: CollectorRegistry) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 100)), max_size=50))
def test_a_histogram_reads_as_the_library_s_own_does(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    child = Histogram("h", "text", ("l",), ours, BOUNDS).labels("x")
    own = prometheus_client.Histogram("h", "text", ("l",), buckets=BOUNDS, registry=theirs).labels("x")
    for value in values:
        child.observe(value)
        own.observe(value)
    expected = read(theirs)
    assert read(ours) == pytest.approx(expected)
    assert read(ours) == pytest.approx(expected)  # reading changes nothing


def test_a_counter_and_a_gauge_read_as_the_library_s_own_do() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    for counter, gauge in (
        (Counter("c_total", "text", ("l",), ours), Gauge("g", "text", ("l",), ours)),
        (
            prometheus_client.Counter("c_total", "text", ("l",), registry=theirs),
            prometheus_client.Gauge("g", "text", ("l",), registry=theirs),
        ),
    ):
        counter.labels("x").inc()
        counter.labels("x").inc(2.5)
        gauge.labels("y").set(7)
        gauge.labels("y").inc()
        gauge.labels("y").dec()
    assert read(ours) == read(theirs)


def test_nothing_observed_is_lost_while_others_read() -> None:
    registry = CollectorRegistry()
    child = Histogram("h", "text", (), registry, BOUNDS).labels()
    done = threading.Event()

    def reading() -> None:
        while not done.is_set():
            generate_latest(registry)

    reader = threading.Thread(target=reading)
    reader.start()
    for _ in range(50_000):
        child.observe(0.2)
    done.set()
    reader.join()
    assert read(registry)["h_count", ()] == 50_000
    assert read(registry)["h_sum", ()] == pytest.approx(10_000)


def test_a_wrong_number_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="g has the labels"):
        Gauge("g", "text", ("a", "b"), CollectorRegistry()).labels("x")
