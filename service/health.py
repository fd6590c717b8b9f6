"""The statuses that gRPC's health service reports for the server, its services and its models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from service.repository.repository import Repository

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc]  # the base class has no types
    """gRPC's health service. The library implements Check and Watch."""

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> None:
        """Refuses the call: clients must ask for one of the names that Check knows."""
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, "List is not supported: call Check or Watch with a service name"
        )


class ModelHealth:
    """Updates the health of the server (""), of its services and of its models. Each version has the name
    `model/version`; a model's name has the status of its newest served version. The health service itself is SERVING
    while the process runs. Event loop only."""

    def __init__(self, servicer: health.aio.HealthServicer, repository: Repository) -> None:
        self._servicer = servicer
        self._repository = repository
        self._names: set[str] = set()
        self._services: tuple[str, ...] = ()
        self._is_cut = False

    async def start(self, services: Iterable[str]) -> None:
        """Called when the process, its services and its models are ready."""
        self._services = tuple(services)
        await self._servicer.set(health.SERVICE_NAME, _SERVING)
        await self.update()

    async def set_cut(self, is_cut: bool) -> None:
        """Sets whether the server cannot reach the shared store. Then its services are NOT_SERVING, because other
        servers can serve better, and the server itself stays SERVING."""
        if is_cut != self._is_cut:
            self._is_cut = is_cut
            await self.update()

    async def update(self) -> None:
        """Sets the statuses from the repository. Models that are no longer there are NOT_SERVING. Without any served
        model, the server and its services are NOT_SERVING."""
        statuses = dict.fromkeys(self._names, _NOT_SERVING)
        is_serving = bool(self._repository.bundles)
        statuses[""] = _SERVING if is_serving else _NOT_SERVING
        services = _SERVING if is_serving and not self._is_cut else _NOT_SERVING
        statuses |= dict.fromkeys(self._services, services)
        for keys, status in ((self._repository.problems, _NOT_SERVING), (self._repository.bundles, _SERVING)):
            for model, version in sorted(keys):
                statuses[model] = statuses[f"{model}/{version}"] = status
        self._names = set(statuses) - {"", *self._services}
        for name, status in statuses.items():
            await self._servicer.set(name, status)
