"""What gRPC's health service says of the server, its services and its models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from service.repository.repository import Repository

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc]  # which has no types
    """gRPC's health service, of which the library has Check and Watch."""

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> None:
        """Not served: one of the names that Check knows has to be asked for."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "List is not served: ask Check, or Watch, for a service")


class ModelHealth:
    """Keeps the health up to date of the server (""), of its services, and of its models: each version as
    `model/version`; a model's name stands for its newest version that is served. The health service itself serves for
    as long as the process does. Event loop only."""

    def __init__(self, servicer: health.aio.HealthServicer, repository: Repository) -> None:
        self._servicer = servicer
        self._repository = repository
        self._names: set[str] = set()
        self._services: tuple[str, ...] = ()
        self._is_cut = False

    async def start(self, services: Iterable[str]) -> None:
        """The process is there, and so are the services and the models."""
        self._services = tuple(services)
        await self._servicer.set(health.SERVICE_NAME, _SERVING)
        await self.update()

    async def set_cut(self, is_cut: bool) -> None:
        """Whether the server cannot reach the store that others share: its services are served better elsewhere, while
        itself it is well."""
        if is_cut != self._is_cut:
            self._is_cut = is_cut
            await self.update()

    async def update(self) -> None:
        """Sets what the repository has now; a model that it has no more is not served. Without any model the server
        and its services are not, either."""
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
