"""The Prometheus metrics: every name, label and bucket, in one place.

Durations are in seconds, sizes in bytes. `model` and `version` label every metric that belongs to a model. No label has
a value that a client can choose freely, such as a session id.

`python -m service.telemetry.metrics > docs/metrics.md` writes the reference of the metrics.
"""

from __future__ import annotations

import platform
from typing import TypeVar

import onnxruntime
from prometheus_client import GCCollector, PlatformCollector, ProcessCollector

from carousel._version import __version__
from service.telemetry.instruments import Counter, Gauge, Histogram, Labels, Registry

MODEL = ("model", "version")
VARIANT = (*MODEL, "variant")
GRAPH = (*VARIANT, "graph")
# The upper bounds of the buckets of histograms, by unit. `_histogram` uses SECONDS when it gets no others.
SECONDS = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.00075),
    *(0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 2.0, 5.0, 10.0),
)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
BYTES = tuple(4.0**power for power in range(5, 16))
LAG = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0)

Instrument = TypeVar("Instrument", Counter, Gauge, Histogram)
_HEAD = """# Metrics

The metrics that `/metrics` serves to Prometheus on `metrics_port`. Made by `./scripts/generate`: do not edit.

Durations are in seconds, sizes in bytes. No label has a value that a client can choose freely: `model`, `version` and
`variant` are those of the repository, `method` is one of the server's methods, and `reason`, `code`, `request` and the
like are fixed lists. A histogram's `_count` is the number of requests, batches or other observations, and can be used
as a counter.
"""
_TAIL = """
The Prometheus client library adds `process_*` (CPU, memory, file descriptors, start time), `python_gc_*` and
`python_info`.
"""


class Metrics:
    """The metrics of one server, in a registry of its own. Safe to use from any thread.

    sections: the instruments by topic, in the order in which they are documented.
    """

    def __init__(self) -> None:
        self.registry = Registry()
        self.sections: dict[str, list[Counter | Gauge | Histogram]] = {}
        self._requests()
        self._engine()
        self._sessions()
        self._store()
        self._models()
        self._calls()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def drop_version(self, model: str, version: int) -> None:
        """Drops the values that are labelled with a version of a model."""
        for instruments in self.sections.values():
            for instrument in instruments:
                instrument.drop(model=model, version=str(version))

    def _requests(self) -> None:
        section = "Requests"
        self.request_seconds = self._histogram(
            section, "request_latency_seconds", "Time from reading a request to its last response", (*MODEL, "request")
        )
        self.first_token_seconds = self._histogram(
            section, "time_to_first_token_seconds", "Time from reading a generate request to its first token", MODEL
        )
        self.inter_token_seconds = self._histogram(
            section,
            "inter_token_latency_seconds",
            "Time between two tokens of a generation; for a burst, the mean",
            MODEL,
        )
        self.tokens = self._counter(
            section,
            "tokens_total",
            "Tokens that sessions consumed or generated, also in cancelled and failed requests; a retried request"
            " counts once; for `score`, the targets' tokens",
            (*MODEL, "request"),
        )
        self.replayed = self._counter(
            section,
            "replayed_requests_total",
            "Retried requests that were answered again without being applied again",
            (*MODEL, "request"),
        )
        self.errors = self._counter(
            section,
            "errors_total",
            "Refused or failed requests and calls, by reason; in a step batch, each refused or failed session",
            ("model", "code", "reason"),
        )

    def _engine(self) -> None:
        section = "Engine"
        self.queue_seconds = self._histogram(
            section, "request_queue_time_seconds", "Time from a request's arrival to its first batch", VARIANT
        )
        self.step_seconds = self._histogram(
            section, "step_latency_seconds", "Time of one batch, from assembling it to its results", GRAPH
        )
        self.gather_seconds = self._histogram(
            section, "batch_assembly_seconds", "Time to choose a batch's rows and gather their state", GRAPH
        )
        self.run_seconds = self._histogram(section, "graph_run_seconds", "Time of the graph run only", GRAPH)
        self.commit_seconds = self._histogram(
            section, "batch_commit_seconds", "Time to choose tokens and store the new state", GRAPH
        )
        self.write_seconds = self._histogram(
            section,
            "response_write_seconds",
            "Time to hand one response to the transport, including the wait for a slow reader",
            (),
        )
        self.batch_size = self._histogram(section, "batch_size", "Number of sessions in one batch", GRAPH, ROWS)
        self.steps = self._counter(section, "steps_total", "Tokens run through a graph", GRAPH)
        self.padded = self._counter(
            section,
            "padded_steps_total",
            "Rows times width of all batches; `steps_total` divided by this is how full the batches are",
            GRAPH,
        )
        self.queue_depth = self._gauge(section, "queue_depth", "Requests admitted and not yet answered", VARIANT)
        self.slots = self._gauge(
            section,
            "slots",
            "Slots of all engines: the most sessions whose state is in memory. A reloaded version has two engines"
            " while sessions use the first",
            VARIANT,
        )
        self.slots_used = self._gauge(section, "slots_used", "Slots in use", VARIANT)
        self.forks_used = self._gauge(section, "forks_used", "Active beams and scored targets", VARIANT)
        self.state_bytes = self._gauge(
            section, "session_state_bytes", "Bytes of the state and context of one session", VARIANT
        )
        self.batch_failures = self._counter(section, "batch_failures_total", "Runs of a graph that failed", GRAPH)

    def _sessions(self) -> None:
        section = "Sessions"
        self.sessions_active = self._gauge(section, "sessions_active", "Sessions open now", MODEL)
        self.sessions_opened = self._counter(section, "sessions_opened_total", "Sessions opened", MODEL)
        self.sessions_closed = self._counter(
            section, "sessions_closed_total", "Sessions closed, by reason", (*MODEL, "reason")
        )
        self.sessions_resumed = self._counter(
            section,
            "sessions_resumed_total",
            "Sessions resumed, by where their state was: memory or store",
            (*MODEL, "source"),
        )
        self.sessions_detached = self._counter(
            section, "sessions_detached_total", "Sessions detached because their stream ended", MODEL
        )
        self.sessions_spilled = self._gauge(
            section, "sessions_spilled", "Spilled sessions: their state is only in the store", MODEL
        )
        self.spills = self._counter(section, "session_spills_total", "Sessions spilled to free a slot", MODEL)

    def _store(self) -> None:
        section = "Store"
        self.store_up = self._gauge(section, "store_up", "1 while the store works, 0 while its operations fail")
        self.store_at_risk = self._gauge(
            section,
            "store_at_risk",
            "1 while the store's settings can lose acknowledged sessions (Redis may evict), else 0",
        )
        self.checkpoints = self._counter(section, "checkpoints_total", "Session records written to the store")
        self.checkpoint_bytes = self._counter(
            section, "checkpoint_bytes_total", "Bytes of session records written to the store"
        )
        self.snapshot_bytes = self._histogram(
            section,
            "snapshot_bytes",
            "Size of serialized sessions: checkpoints and requested snapshots",
            ("use",),
            BYTES,
        )
        self.checkpoint_delay = self._histogram(
            section,
            "checkpoint_delay_seconds",
            "Time from a session's first change after a checkpoint to its next checkpoint",
            buckets=LAG,
        )
        self.checkpoint_lag = self._gauge(
            section,
            "checkpoint_lag_seconds",
            "Age of the oldest session change that is not stored yet",
            (),
        )
        self.store_seconds = self._histogram(section, "store_write_seconds", "Time of one batch of writes to the store")
        self.store_read_seconds = self._histogram(
            section, "store_read_seconds", "Time to find, and claim, a session's record"
        )
        self.store_errors = self._counter(section, "store_errors_total", "Store operations that failed", ("operation",))
        self.store_failures = self._counter(
            section, "store_failures_total", "Number of times that the store stopped working"
        )
        self.records_corrupt = self._counter(
            section, "corrupt_records_total", "Records that could not be read and were quarantined"
        )

    def _models(self) -> None:
        section = "Models and the process"
        self.models_served = self._gauge(
            section,
            "models_served",
            "1 for a served version; 0 for a version that failed to load, or was unloaded and still has sessions",
            MODEL,
        )
        self.model_loads = self._counter(
            section, "model_loads_total", "Versions loaded, by result: ok or failed", (*MODEL, "result")
        )
        self.certificate_expiry = self._gauge(
            section,
            "tls_certificate_expiry_timestamp_seconds",
            "Earliest expiry of the certificates in a file, in seconds since the epoch. `file` is the setting"
            " that names the file: `tls_cert_file` or `tls_client_ca_file`. Absent without TLS",
            ("file",),
        )
        build = self._gauge(section, "build_info", "Always 1", ("version", "python_version", "onnxruntime_version"))
        build.labels(__version__, platform.python_version(), onnxruntime.__version__).set(1)

    def _calls(self) -> None:
        section = "gRPC calls"
        self.calls = self._counter(section, "calls_total", "gRPC calls ended, by status code", ("method", "code"))
        self.call_seconds = self._histogram(section, "call_duration_seconds", "Duration of gRPC calls", ("method",))
        self.calls_active = self._gauge(
            section, "calls_active", "gRPC calls in progress; for Stream, the open streams", ("method",)
        )
        self.connections_active = self._gauge(
            section, "connections_active", "Client connections with a call in progress"
        )

    def _histogram(
        self, section: str, name: str, text: str, labels: Labels = (), buckets: tuple[float, ...] = SECONDS
    ) -> Histogram:
        return self._keep(section, Histogram(f"carousel_{name}", text, labels, self.registry, buckets))

    def _counter(self, section: str, name: str, text: str, labels: Labels = ()) -> Counter:
        return self._keep(section, Counter(f"carousel_{name}", text, labels, self.registry))

    def _gauge(self, section: str, name: str, text: str, labels: Labels = ()) -> Gauge:
        return self._keep(section, Gauge(f"carousel_{name}", text, labels, self.registry))

    def _keep(self, section: str, instrument: Instrument) -> Instrument:
        self.sections.setdefault(section, []).append(instrument)
        return instrument


def markdown() -> str:
    """Returns the reference of all metrics, in Markdown."""
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
