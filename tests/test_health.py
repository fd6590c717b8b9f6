"""The health service reports a server as serving while it has a model, and its services as not serving while the store
cannot be reached."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

from grpc_health.v1 import health, health_pb2

from service.health import HealthServicer, ModelHealth
from service.repository.bundle import load_bundle
from service.repository.repository import Problem, Repository
from tests.bundles import write_language_model

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_server_without_a_model_is_not_serving_but_healthy(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    repository.problems["broken", 1] = Problem("broken", 1, "it is no good")
    servicer = HealthServicer()
    it = ModelHealth(servicer, repository)

    async def statuses() -> list[int]:
        names = ("", "api", "tiny-lm", "broken", health.SERVICE_NAME)
        return [(await servicer.Check(health_pb2.HealthCheckRequest(service=name), Mock())).status for name in names]

    key = ("tiny-lm", 1)
    repository.bundles[key] = load_bundle(write_language_model(tmp_path))
    await it.start(["api"])
    assert await statuses() == [SERVING, SERVING, SERVING, NOT_SERVING, SERVING]
    await it.set_cut(True)
    assert await statuses() == [SERVING, NOT_SERVING, SERVING, NOT_SERVING, SERVING]
    bundle = repository.bundles.pop(key)
    await it.update()
    assert await statuses() == [NOT_SERVING, NOT_SERVING, NOT_SERVING, NOT_SERVING, SERVING]
    await it.set_cut(False)
    assert await statuses() == [NOT_SERVING, NOT_SERVING, NOT_SERVING, NOT_SERVING, SERVING]
    repository.bundles[key] = bundle
    await it.update()
    assert await statuses() == [SERVING, SERVING, SERVING, NOT_SERVING, SERVING]
