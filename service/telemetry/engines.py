"""Turns reports of engines and models into metrics: implements `EngineObserver` and `ModelObserver`.

Label children are looked up once, here, and never on the hot path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import structlog

from service.observer import BatchReport, GraphKind, RequestTrace
from service.telemetry.instruments import FLUSH_AT, Backlog, CounterChild, Gauge, HistogramChild
from service.telemetry.metrics import Metrics
from service.telemetry.observers import SessionTelemetry

log = structlog.get_logger()


class _Graph(NamedTuple):
    step_seconds: HistogramChild
    gather_seconds: HistogramChild
    run_seconds: HistogramChild
    commit_seconds: HistogramChild
    batch_size: HistogramChild
    steps: CounterChild
    padded: CounterChild
    failures: CounterChild


class Occupancy(NamedTuple):
    """What is in use in an engine. num_sessions: sessions that have a slot; num_forks: beams and scored targets that
    have a slot; num_waiting: requests admitted and not yet answered."""

    num_sessions: int
    num_forks: int
    num_waiting: int = 0


class EngineTelemetry:
    """The `EngineObserver` of one variant of a model."""

    def __init__(self, metrics: Metrics, model: str, version: int, variant: str, *, is_tracing: bool = False) -> None:
        self.is_tracing = is_tracing
        self._log_fields = {"model": model, "version": version, "variant": variant}
        labels = (model, str(version), variant)
        self._metrics, self._labels = metrics, labels
        self._queue_seconds = metrics.queue_seconds.labels(*labels)
        self._graphs = {
            kind: _Graph(
                metrics.step_seconds.labels(*labels, kind),
                metrics.gather_seconds.labels(*labels, kind),
                metrics.run_seconds.labels(*labels, kind),
                metrics.commit_seconds.labels(*labels, kind),
                metrics.batch_size.labels(*labels, kind),
                metrics.steps.labels(*labels, kind),
                metrics.padded.labels(*labels, kind),
                metrics.batch_failures.labels(*labels, kind),
            )
            for kind in get_args(GraphKind)
        }
        self._batches: Backlog[BatchReport] = Backlog(self._fold)
        metrics.registry.add(self._batches)

    def watch(self, read: Callable[[], Occupancy | None], *, num_slots: int, state_bytes: int) -> None:
        """Adds an engine whose occupancy is reported. A version that was unloaded and loaded again has two engines
        while sessions use the first.

        read: returns None once the engine has stopped; must be safe to call from any thread.
        """
        metrics, labels = self._metrics, self._labels
        metrics.state_bytes.labels(*labels).set(state_bytes)

        def report(gauge: Gauge, value: Callable[[Occupancy], float]) -> None:
            def ask() -> float | None:
                seen = read()
                return None if seen is None else value(seen)

            gauge.labels(*labels).add_function(ask)

        report(metrics.slots, lambda seen: num_slots)
        # a read between two changes may count a fork that begins or ends as a session
        report(metrics.slots_used, lambda seen: min(seen.num_sessions, num_slots))
        report(metrics.forks_used, lambda seen: seen.num_forks)
        report(metrics.queue_depth, lambda seen: seen.num_waiting)

    def batch_ran(self, report: BatchReport) -> None:
        """See `EngineObserver`."""
        reports = self._batches.reports
        reports.append(report)
        if len(reports) >= FLUSH_AT:
            self._batches.flush()

    def _fold(self, reports: list[BatchReport]) -> None:
        for kind, graph in self._graphs.items():
            some = [report for report in reports if report.kind == kind]
            if not some:
                continue
            graph.step_seconds.extend(report.gather_s + report.run_s + report.commit_s for report in some)
            graph.gather_seconds.extend(report.gather_s for report in some)
            graph.run_seconds.extend(report.run_s for report in some)
            graph.commit_seconds.extend(report.commit_s for report in some)
            graph.batch_size.extend(report.num_rows for report in some)
            graph.steps.inc(sum(report.num_tokens for report in some))
            graph.padded.inc(sum(report.capacity for report in some))
            self._queue_seconds.extend(seconds for report in some for seconds in report.queue_s)

    def batch_traced(self, tags: Sequence[Any], report: BatchReport) -> None:
        """See `EngineObserver`. tags: mostly requests."""
        for request in tags:
            trace: RequestTrace | None = getattr(request, "trace", None)
            if trace is not None:
                trace.batch_ran(report)

    def batch_failed(self, kind: GraphKind, num_rows: int, error: BaseException) -> None:
        """See `EngineObserver`."""
        self._graphs[kind].failures.inc()
        log.error("batch.failed", graph=kind, num_rows=num_rows, exc_info=error, **self._log_fields)


class ModelTelemetry:
    """The `ModelObserver` of the server. sessions: also drops its metrics of a version that is dropped; changed: called
    after a version was loaded, has failed or was unloaded."""

    def __init__(self, metrics: Metrics, sessions: SessionTelemetry, changed: Callable[[], None]) -> None:
        self._metrics, self._sessions = metrics, sessions
        self._served = metrics.models_served
        self._loads = metrics.model_loads
        self._changed = changed

    def model_loaded(self, model: str, version: int, variants: list[str]) -> None:
        """See `ModelObserver`."""
        self._sessions.add_version(model, version)
        self._served.labels(model, str(version)).set(1)
        self._loads.labels(model, str(version), "ok").inc()
        log.info("model.loaded", model=model, version=version, variants=variants)
        self._changed()

    def model_failed(self, model: str, version: int, reason: str) -> None:
        """See `ModelObserver`."""
        self._served.labels(model, str(version)).set(0)
        self._loads.labels(model, str(version), "failed").inc()
        log.error("model.failed", model=model, version=version, reason=reason)
        self._changed()

    def model_unloaded(self, model: str, version: int) -> None:
        """See `ModelObserver`."""
        self._served.labels(model, str(version)).set(0)
        log.info("model.unloaded", model=model, version=version)
        self._changed()

    def model_dropped(self, model: str, version: int) -> None:
        """See `ModelObserver`."""
        self._sessions.drop_version(model, version)
        self._metrics.drop_version(model, version)
        log.info("model.dropped", model=model, version=version)

    def nothing_served(self, folder: str, num_versions: int) -> None:
        """See `ModelObserver`."""
        hint = (
            "see the log lines model.failed"
            if num_versions
            else "put a bundle into <model>/<version>/ of this folder, or set --models to another folder"
        )
        log.warning("models.none_served", folder=folder, versions=num_versions, hint=hint)

    def repository_lost(self, reason: str) -> None:
        """See `ModelObserver`."""
        log.error("models.folder_lost", reason=reason)

    def repository_found(self) -> None:
        """See `ModelObserver`."""
        log.info("models.folder_found")
