"""The hot path's own instruments give the same output as those of prometheus_client."""

from __future__ import annotations

import threading
from functools import partial

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.observer import BatchReport
from service.telemetry.engines import EngineTelemetry, ModelTelemetry, Occupancy
from service.telemetry.instruments import Backlog, Counter, Gauge, Histogram, Registry
from service.telemetry.metrics import Metrics
from service.telemetry.observers import SessionTelemetry

BOUNDS = (0.1, 0.5, 1.0, 10.0)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(registry: Registry) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 100)), max_size=50))
def test_a_histogram_gives_the_output_of_prometheus_client(values: list[float]) -> None:
    ours, theirs = Registry(), Registry()
    child = Histogram("h", "text", ("l",), ours, BOUNDS).labels("x")
    own = prometheus_client.Histogram("h", "text", ("l",), buckets=BOUNDS, registry=theirs).labels("x")
    for value in values:
        child.observe(value)
        own.observe(value)
    expected = read(theirs)
    assert read(ours) == pytest.approx(expected)
    assert read(ours) == pytest.approx(expected)  # reading changes nothing


def test_a_counter_and_a_gauge_give_the_output_of_prometheus_client() -> None:
    ours, theirs = Registry(), Registry()
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


def test_no_observation_is_lost_during_concurrent_reads() -> None:
    registry = Registry()
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
        Gauge("g", "text", ("a", "b"), Registry()).labels("x")


def test_a_version_that_is_dropped_leaves_no_metric_behind() -> None:
    metrics = Metrics()
    sessions = SessionTelemetry(metrics)
    models = ModelTelemetry(metrics, sessions, lambda: None)
    before = generate_latest(metrics.registry).decode().count("g2p")
    for version in (1, 2):
        models.model_loaded("g2p", version, ["fp32"])
        EngineTelemetry(metrics, "g2p", version, "fp32").watch(lambda: Occupancy(0, 0), num_slots=1, state_bytes=1)
        sessions.session_opened("g2p", version, "s")
        sessions.request_answered("g2p", version, "feed", 0.1, 1, trace=None)
        sessions.session_closed("g2p", version, "s", "client", 1)
    models.model_unloaded("g2p", 1)
    models.model_dropped("g2p", 1)
    text = generate_latest(metrics.registry).decode()
    assert before == 0
    assert 'version="1"' not in "".join(line for line in text.splitlines() if "g2p" in line)
    assert 'carousel_sessions_opened_total{model="g2p",version="2"} 1.0' in text
    sessions.session_opened("g2p", 1, "t")
    text = generate_latest(metrics.registry).decode()
    assert 'carousel_sessions_active{model="g2p",version="1"} 1.0' in text, "one that comes back begins anew"


def test_the_engines_of_one_version_are_summed_for_as_long_as_each_runs() -> None:
    metrics = Metrics()
    labels = (("model", "g2p"), ("variant", "fp32"), ("version", "1"))
    stopped: set[int] = set()

    def occupancy(engine: int) -> Occupancy | None:
        return None if engine in stopped else Occupancy(engine + 1, 1, 2)

    for engine in range(3):
        telemetry = EngineTelemetry(metrics, "g2p", 1, "fp32")
        telemetry.watch(partial(occupancy, engine), num_slots=10, state_bytes=100)
        if engine == 1:
            stopped.add(0)
    found = read(metrics.registry)
    values = [found[f"carousel_{name}", labels] for name in ("slots", "slots_used", "forks_used", "queue_depth")]
    assert values == [20.0, 5.0, 2.0, 4.0]
    assert found["carousel_session_state_bytes", labels] == 100.0


def test_counting_tokens_delays_no_response() -> None:
    metrics = Metrics()
    sessions = SessionTelemetry(metrics)
    sessions.tokens_moved("g2p", 1, "generate", 7)
    sessions.request_answered("g2p", 1, "generate", 0.5, 0, trace=None)
    found = read(metrics.registry)
    labels = (("model", "g2p"), ("request", "generate"), ("version", "1"))
    assert found["carousel_tokens_total", labels] == 7.0
    assert found["carousel_request_latency_seconds_count", labels] == 1.0


def test_a_backlog_is_counted_on_any_read_and_dropped_with_its_owner() -> None:
    registry = Registry()
    counter = Counter("folded", "text", (), registry)
    child = counter.labels()
    backlog: Backlog[int] = Backlog(lambda reports: child.inc(sum(reports)))
    registry.add(backlog)
    backlog.reports += [1, 2, 3]
    assert read(registry)["folded_total", ()] == 6.0
    assert backlog.reports == []
    assert read(registry)["folded_total", ()] == 6.0
    del backlog
    assert read(registry)["folded_total", ()] == 6.0


def test_batches_and_answers_are_counted_by_their_labels() -> None:
    metrics = Metrics()
    engine, sessions = EngineTelemetry(metrics, "g2p", 1, "fp32"), SessionTelemetry(metrics)
    for rows in (2, 3):
        engine.batch_ran(BatchReport("step", rows, rows, 4, (0.001, 0.002), 0.1, 0.2, 0.3))
    sessions.request_answered("g2p", 1, "feed", 0.5, 3, trace=None)
    sessions.response_written(0.25)
    found = read(metrics.registry)
    variant = (("graph", "step"), ("model", "g2p"), ("variant", "fp32"), ("version", "1"))
    assert found["carousel_batch_size_sum", variant] == 5.0
    assert found["carousel_batch_size_count", variant] == 2.0
    model = (("model", "g2p"), ("request", "feed"), ("version", "1"))
    assert found["carousel_tokens_total", model] == 3.0
    assert [v for (name, _), v in found.items() if name == "carousel_request_queue_time_seconds_count"] == [4.0]


def test_counters_of_a_version_begin_at_0_when_it_is_served() -> None:
    """Prometheus cannot compute a rate before a counter exists, and would miss its first increment."""
    metrics = Metrics()
    ModelTelemetry(metrics, SessionTelemetry(metrics), lambda: None).model_loaded("g2p", 1, ["fp32"])
    found = {
        (sample.name, *(sample.labels.get(name) for name in ("request", "reason", "source"))): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
        if sample.labels.get("model") == "g2p"
    }
    for request in ("feed", "generate", "score", "step_batch"):
        assert found["carousel_tokens_total", request, None, None] == 0
        assert found["carousel_request_latency_seconds_count", request, None, None] == 0
        assert found["carousel_replayed_requests_total", request, None, None] == 0
    assert found["carousel_sessions_closed_total", None, "idle", None] == 0
    assert found["carousel_sessions_resumed_total", None, None, "store"] == 0
    assert found["carousel_session_spills_total", None, None, None] == 0
