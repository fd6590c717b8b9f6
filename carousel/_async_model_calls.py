"""`AsyncClient.models`, `AsyncClient.model`, `AsyncClient.load_models` and `AsyncClient.unload_model`."""

# ruff: noqa: ASYNC109 - the same `timeout` as in the blocking client

from __future__ import annotations

from carousel import _admin_requests, _answers
from carousel._async_call import unary
from carousel.v1 import models_pb2, models_pb2_grpc
from carousel.values import ModelInfo


class AsyncModelCalls:
    """The calls about a server's models. timeout: seconds; default the client's."""

    _models: models_pb2_grpc.ModelsAsyncStub
    _timeout: float | None

    async def models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """Returns each version of each model, served or not, sorted by name and version."""
        request = models_pb2.ModelsListRequest()
        response = await unary(self._models.List, request, self._timeout if timeout is None else timeout)
        return tuple(map(_answers.model_info, response.models))

    async def model(self, name: str, version: int = 0, *, timeout: float | None = None) -> ModelInfo:
        """Returns one version of a model; 0 means the newest that is served. Raises NotFoundError."""
        request = _admin_requests.model_request(name, version)
        response = await unary(self._models.Get, request, self._timeout if timeout is None else timeout)
        return _answers.model_info(response.model)

    async def load_models(
        self, name: str = "", version: int = 0, *, timeout: float | None = None
    ) -> tuple[ModelInfo, ...]:
        """Makes the server load versions that are in its repository and not yet served.

        name: empty for all models. version: 0 for all versions. Returns the versions that the server checked, sorted
        by name and version: those that are served now, and those that cannot be loaded, whose `problem` says why. When
        there are many, they have no vocabularies. Raises NotFoundError for a name or version that is not in the
        repository, and PermissionDeniedError.
        """
        request = _admin_requests.load_request(name, version)
        response = await unary(self._models.Load, request, self._timeout if timeout is None else timeout)
        return tuple(map(_answers.model_info, response.models))

    async def unload_model(self, name: str, version: int, *, timeout: float | None = None) -> int:
        """Makes the server stop serving a version. Its open sessions continue until they end.

        version: 1 or more. Returns how many sessions are still open. Raises NotFoundError, InvalidArgumentError,
        PermissionDeniedError.
        """
        request = _admin_requests.unload_request(name, version)
        response = await unary(self._models.Unload, request, self._timeout if timeout is None else timeout)
        return response.session_count
