"""What gRPC's health service says of the server, its services and its models."""

from __future__ import annotations

from collections.abc import Iterable

from grpc_health.v1 import health, health_pb2

from service.repository.repository import Repository

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class ModelHealth:
    """Keeps the health of models up to date: each version as `model/version`; a model's name stands for its newest
    version that is served. Event loop only."""

    def __init__(self, servicer: health.aio.HealthServicer, repository: Repository) -> None:
        self._servicer = servicer
        self._repository = repository
        self._names: set[str] = set()

    async def start(self, services: Iterable[str]) -> None:
        """The server and its services are there, and so are its models."""
        for name in ("", *services):
            await self._servicer.set(name, _SERVING)
        await self.update()

    async def update(self) -> None:
        """Sets what the repository has now; a model that it has no more is not served."""
        statuses = dict.fromkeys(self._names, _NOT_SERVING)
        for keys, status in ((self._repository.problems, _NOT_SERVING), (self._repository.bundles, _SERVING)):
            for model, version in sorted(keys):
                statuses[model] = statuses[f"{model}/{version}"] = status
        self._names = set(statuses)
        for name, status in statuses.items():
            await self._servicer.set(name, status)
