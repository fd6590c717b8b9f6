"""Turns reports of sessions, calls and the store into metrics and log lines: implements `SessionObserver`,
`ApiObserver` and `StoreObserver`. `engines` implements `EngineObserver` and `ModelObserver`.

Label children are looked up once, here, and never on the hot path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import structlog

from service.observer import CallReport, CallTrace, RequestTrace
from service.sessions.session import CloseReason
from service.telemetry.access_log import AccessLog
from service.telemetry.instruments import FLUSH_AT, Backlog, CounterChild, GaugeChild, HistogramChild
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing

log = structlog.get_logger()

_REQUESTS = ("feed", "generate", "score", "step_batch")
_Answered = tuple[str, int, str, float | None, int]
"""A report of a request: model, version, kind, seconds until it was answered, tokens. The seconds are None if the
request moved its session by the tokens but is not answered yet, or failed."""


class _Sessions(NamedTuple):
    active: GaugeChild
    opened: CounterChild
    first_token_seconds: HistogramChild
    inter_token_seconds: HistogramChild


class SessionTelemetry:
    """The `SessionObserver` and the `ApiObserver` of the server."""

    def __init__(self, metrics: Metrics, tracing: Tracing | None = None, access_log: AccessLog | None = None) -> None:
        self._metrics = metrics
        self._access_log = access_log
        self._tracing = tracing
        self._peers: Counter[str] = Counter()
        self._connections = metrics.connections_active.labels()
        self._write_seconds = metrics.write_seconds.labels()
        self._snapshot_bytes = metrics.snapshot_bytes.labels("snapshot")

        self._models: dict[tuple[str, int], _Sessions] = {}
        self._requests: dict[tuple[str, int, str], tuple[HistogramChild, CounterChild]] = {}
        self._answered: Backlog[_Answered] = Backlog(self._fold_answered)
        self._writes: Backlog[float] = Backlog(self._write_seconds.extend)
        metrics.registry.add(self._answered)
        metrics.registry.add(self._writes)

    def add_version(self, model: str, version: int) -> None:
        """Starts the counters of a served version at 0, so that their rates are 0 and not unknown."""
        metrics, labels = self._metrics, (model, str(version))
        self._of_model(model, version)
        for request in _REQUESTS:
            self._of_request(model, version, request)
            metrics.replayed.labels(*labels, request)
        for reason in CloseReason:
            metrics.sessions_closed.labels(*labels, reason.value)
        for source in ("memory", "store"):
            metrics.sessions_resumed.labels(*labels, source)
        for instrument in (metrics.sessions_detached, metrics.spills, metrics.sessions_spilled):
            instrument.labels(*labels)

    def drop_version(self, model: str, version: int) -> None:
        """Drops the children of a version that has no sessions any more."""
        self._answered.flush()
        self._models.pop((model, version), None)
        for key in [key for key in self._requests if key[:2] == (model, version)]:
            del self._requests[key]

    def _of_model(self, model: str, version: int) -> _Sessions:
        found = self._models.get((model, version))
        if found is None:
            metrics, labels = self._metrics, (model, str(version))
            found = self._models[model, version] = _Sessions(
                metrics.sessions_active.labels(*labels),
                metrics.sessions_opened.labels(*labels),
                metrics.first_token_seconds.labels(*labels),
                metrics.inter_token_seconds.labels(*labels),
            )
        return found

    def session_opened(self, model: str, version: int, session_id: str) -> None:
        """See `SessionObserver`."""
        sessions = self._of_model(model, version)
        sessions.active.inc()
        sessions.opened.inc()
        log.debug("session.opened", session_id=session_id, model=model, version=version)

    def session_closed(self, model: str, version: int, session_id: str, reason: str, position: int) -> None:
        """See `SessionObserver`."""
        self._of_model(model, version).active.dec()
        self.stored_session_closed(model, version, session_id, reason, position)

    def stored_session_closed(self, model: str, version: int, session_id: str, reason: str, position: int) -> None:
        """See `SessionObserver`."""
        self._metrics.sessions_closed.labels(model, str(version), reason).inc()
        log.debug(
            "session.closed", session_id=session_id, model=model, version=version, reason=reason, position=position
        )

    def session_resumed(self, model: str, version: int, session_id: str, source: str) -> None:
        """See `SessionObserver`."""
        self._metrics.sessions_resumed.labels(model, str(version), source).inc()
        log.debug("session.resumed", session_id=session_id, model=model, version=version, source=source)

    def session_detached(self, model: str, version: int, session_id: str) -> None:
        """See `SessionObserver`."""
        self._metrics.sessions_detached.labels(model, str(version)).inc()
        log.debug("session.detached", session_id=session_id, model=model, version=version)

    def session_spilled(self, model: str, version: int, session_id: str) -> None:
        """See `SessionObserver`."""
        self._metrics.spills.labels(model, str(version)).inc()
        self._metrics.sessions_spilled.labels(model, str(version)).inc()

    def session_unspilled(self, model: str, version: int, session_id: str) -> None:
        """See `SessionObserver`."""
        self._metrics.sessions_spilled.labels(model, str(version)).dec()

    def first_token(self, model: str, version: int, seconds: float, num_tokens: int) -> None:
        """See `SessionObserver`."""
        self.tokens_moved(model, version, "generate", num_tokens)
        self._of_model(model, version).first_token_seconds.observe(seconds)

    def next_tokens(self, model: str, version: int, seconds: float, num_tokens: int) -> None:
        """See `SessionObserver`."""
        reports = self._answered.reports
        reports.append((model, version, "generate", None, num_tokens))
        if len(reports) >= FLUSH_AT:
            self._answered.flush()
        self._of_model(model, version).inter_token_seconds.observe(seconds)

    def request_replayed(self, model: str, version: int, request: str) -> None:
        """See `SessionObserver`."""
        self._metrics.replayed.labels(model, str(version), request).inc()

    def snapshot_made(self, num_bytes: int) -> None:
        """See `SessionObserver`."""
        self._snapshot_bytes.observe(num_bytes)

    def tokens_moved(self, model: str, version: int, request: str, num_tokens: int) -> None:
        """See `SessionObserver`."""
        reports = self._answered.reports
        reports.append((model, version, request, None, num_tokens))
        if len(reports) >= FLUSH_AT:
            self._answered.flush()

    def request_answered(
        self, model: str, version: int, request: str, seconds: float, num_tokens: int, *, trace: RequestTrace | None
    ) -> None:
        """See `SessionObserver`."""
        reports = self._answered.reports
        reports.append((model, version, request, seconds, num_tokens))
        if len(reports) >= FLUSH_AT:
            self._answered.flush()
        if trace is not None:
            latency, _ = self._of_request(model, version, request)
            latency.exemplify(seconds, trace.trace_id)

    def _fold_answered(self, reports: list[_Answered]) -> None:
        by_key: dict[tuple[str, int, str], list[_Answered]] = {}
        for report in reports:
            by_key.setdefault(report[:3], []).append(report)
        for key, some in by_key.items():
            latency, tokens = self._of_request(*key)
            latency.extend(seconds for *_, seconds, _ in some if seconds is not None)
            tokens.inc(sum(num_tokens for *_, num_tokens in some))

    def _of_request(self, model: str, version: int, request: str) -> tuple[HistogramChild, CounterChild]:
        found = self._requests.get((model, version, request))
        if found is None:
            labels = (model, str(version), request)
            found = self._metrics.request_seconds.labels(*labels), self._metrics.tokens.labels(*labels)
            self._requests[model, version, request] = found
        return found

    def trace_call(self, report: CallReport, metadata: Mapping[str, str]) -> CallTrace | None:
        """See `ApiObserver`."""
        return None if self._tracing is None else self._tracing.call(report, metadata)

    def call_started(self, report: CallReport) -> None:
        """See `ApiObserver`."""
        self._metrics.calls_active.labels(_method(report)).inc()
        self._peers[report.peer] += 1
        self._connections.set(len(self._peers))

    def call_ended(self, report: CallReport) -> None:
        """See `ApiObserver`."""
        peer, method = report.peer, _method(report)
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]
        self._connections.set(len(self._peers))
        self._metrics.calls_active.labels(method).dec()
        self._metrics.calls.labels(method, report.code).inc()
        self._metrics.call_seconds.labels(method).observe(report.duration_s)
        if self._access_log is not None:
            self._access_log.call_ended(report)

    def response_written(self, seconds: float) -> None:
        """See `ApiObserver`."""
        reports = self._writes.reports
        reports.append(seconds)
        if len(reports) >= FLUSH_AT:
            self._writes.flush()

    def request_failed(self, model: str, code: str, reason: str, count: int = 1) -> None:
        """See `ApiObserver`."""
        self._metrics.errors.labels(model, code, reason).inc(count)

    def handler_crashed(self, method: str, error: BaseException) -> None:
        """See `ApiObserver`."""
        log.error("handler.crashed", method=method, exc_info=error)


def _method(report: CallReport) -> str:
    """Returns the label for the method of a call: `unknown` for a method that the server does not have, because clients
    can send anything."""
    return report.method if report.is_known else "unknown"


class StoreTelemetry:
    """The `StoreObserver` of the server."""

    def __init__(self, metrics: Metrics) -> None:
        self._checkpoints = metrics.checkpoints.labels()
        self._bytes = metrics.checkpoint_bytes.labels()
        self._seconds = metrics.store_seconds.labels()
        self._failures = metrics.store_failures.labels()
        self._corrupt = metrics.records_corrupt.labels()
        self._errors = {name: metrics.store_errors.labels(name) for name in ("read", "write", "heartbeat", "upkeep")}
        self._sizes = metrics.snapshot_bytes.labels("checkpoint")
        self._read_seconds = metrics.store_read_seconds.labels()
        self._delay = metrics.checkpoint_delay.labels()
        self._up = metrics.store_up.labels()
        self._up.set(1)
        self._at_risk = metrics.store_at_risk.labels()

    def records_written(self, sizes: Sequence[int], seconds: float) -> None:
        """See `StoreObserver`."""
        self._checkpoints.inc(len(sizes))
        self._bytes.inc(sum(sizes))
        self._seconds.observe(seconds)
        for size in sizes:
            self._sizes.observe(size)

    def record_read(self, seconds: float) -> None:
        """See `StoreObserver`."""
        self._read_seconds.observe(seconds)

    def session_stored(self, seconds: float) -> None:
        """See `StoreObserver`."""
        self._delay.observe(seconds)

    def operation_failed(self, operation: str) -> None:
        """See `StoreObserver`."""
        self._errors[operation].inc()

    def store_failed(self, error: BaseException) -> None:
        """See `StoreObserver`."""
        self._failures.inc()
        self._up.set(0)
        log.error("store.failed", reason=str(error))

    def store_recovered(self) -> None:
        """See `StoreObserver`."""
        self._up.set(1)
        log.info("store.recovered")

    def store_at_risk(self, reason: str) -> None:
        """See `StoreObserver`."""
        self._at_risk.set(1 if reason else 0)
        if reason:
            log.error("store.at_risk", reason=reason)
        else:
            log.info("store.safe")

    def record_corrupt(self, session_id: str, error: BaseException) -> None:
        """See `StoreObserver`."""
        self._corrupt.inc()
        log.error("store.record_corrupt", session_id=session_id, reason=str(error))
