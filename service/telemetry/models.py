"""The observer of models' versions, implemented: which are served, and what is dropped with a version."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from service.telemetry.metrics import Metrics
from service.telemetry.observers import SessionTelemetry

log = structlog.get_logger()


class ModelTelemetry:
    """A `ModelObserver`. sessions: drops its own part of a version that is dropped; changed: called after each report
    of a version."""

    def __init__(self, metrics: Metrics, sessions: SessionTelemetry, changed: Callable[[], None]) -> None:
        self._metrics, self._sessions = metrics, sessions
        self._served = metrics.models_served
        self._loads = metrics.model_loads
        self._changed = changed

    def model_loaded(self, model: str, version: int, variants: list[str]) -> None:
        """See `ModelObserver`."""
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

    def repository_lost(self, reason: str) -> None:
        """See `ModelObserver`."""
        log.error("models.folder_lost", reason=reason)

    def repository_found(self) -> None:
        """See `ModelObserver`."""
        log.info("models.folder_found")
