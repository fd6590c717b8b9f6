"""The Prometheus metrics: every name, label and bucket, in one place.

Durations are in seconds. `model` and `version` label whatever belongs to a model; no label ever holds a session id.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from service.telemetry.instruments import Counter, Gauge, Histogram

MODEL = ("model", "version")
VARIANT = (*MODEL, "variant")
SECONDS = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.00075),
    *(0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 2.0, 5.0, 10.0),
)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The metrics of one server, in a registry of its own. Safe to use from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"carousel_{name}", text, labels, self.registry, buckets)

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"carousel_{name}", text, labels, self.registry)

        def gauge(name: str, text: str, labels: tuple[str, ...]) -> Gauge:
            return Gauge(f"carousel_{name}", text, labels, self.registry)

        self.request_seconds = histogram(
            "request_latency_seconds", "From reading a request to its last answer", (*MODEL, "request")
        )
        self.first_token_seconds = histogram(
            "time_to_first_token_seconds", "From reading a generate request to its first token", MODEL
        )
        self.queue_seconds = histogram("request_queue_time_seconds", "From a request's arrival to its batch", VARIANT)
        self.step_seconds = histogram(
            "step_latency_seconds", "One batch, from assembling it to its results", (*VARIANT, "graph")
        )
        self.run_seconds = histogram("graph_run_seconds", "The run of the graph alone", (*VARIANT, "graph"))
        self.batch_size = histogram("batch_size", "Sessions advanced by one batch", (*VARIANT, "graph"), ROWS)
        self.tokens = counter("tokens_total", "Tokens that sessions consumed or generated", (*MODEL, "request"))
        self.steps = counter("steps_total", "Tokens run through a graph", (*VARIANT, "graph"))
        self.padded = counter("padded_steps_total", "Rows times width of batches, with padding", (*VARIANT, "graph"))
        self.queue_depth = gauge("queue_depth", "Requests admitted and not yet answered", VARIANT)
        self.sessions_active = gauge("sessions_active", "Sessions open now", MODEL)
        self.sessions_opened = counter("sessions_opened_total", "Sessions opened", MODEL)
        self.sessions_closed = counter("sessions_closed_total", "Sessions closed, by reason", (*MODEL, "reason"))
        self.sessions_resumed = counter("sessions_resumed_total", "Sessions gone on with", (*MODEL, "source"))
        self.sessions_detached = counter("sessions_detached_total", "Sessions whose stream ended and left them", MODEL)
        self.sessions_spilled = gauge("sessions_spilled", "Sessions whose state is in the store alone, for room", MODEL)
        self.spills = counter("session_spills_total", "Sessions put aside, to make room", MODEL)
        self.checkpoints = counter("checkpoints_total", "Records of sessions written to the store", ())
        self.checkpoint_bytes = counter("checkpoint_bytes_total", "Bytes of them", ())
        self.store_seconds = histogram("store_write_seconds", "A batch of writes to the store", ())
        self.store_failures = counter("store_failures_total", "Times that the store began to fail", ())
        self.store_up = gauge("store_up", "1 while the store does what it is asked, 0 while it fails", ())
        self.records_corrupt = counter("corrupt_records_total", "Records that could not be read and were set aside", ())
        self.errors = counter("errors_total", "Requests refused or failed, in streams", ("model", "code", "reason"))
        self.calls = counter("calls_total", "gRPC calls ended, by status code", ("method", "code"))
        self.call_seconds = histogram("call_duration_seconds", "gRPC calls, whole", ("method",))
        self.calls_active = gauge("calls_active", "gRPC calls going on", ("method",))
        self.models_served = gauge("models_served", "1 for a version that is served, 0 for one that failed", MODEL)
