"""The `Models` service."""

from __future__ import annotations

import grpc

from carousel.v1 import models_pb2 as pb
from carousel.v1 import models_pb2_grpc
from service.api import convert
from service.errors import ModelUnavailableError
from service.repository.repository import Repository

Context = grpc.aio.ServicerContext[object, object]


class Models(models_pb2_grpc.ModelsServicer):
    """Tells which models are served."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def List(self, request: pb.ModelsListRequest, context: Context) -> pb.ModelsListResponse:
        """Every version, served or not."""
        infos = [convert.model_info(bundle) for bundle in self._repository.bundles.values()]
        infos += [convert.problem_info(problem) for problem in self._repository.problems.values()]
        return pb.ModelsListResponse(models=sorted(infos, key=lambda info: (info.model, info.version)))

    async def Get(self, request: pb.ModelsGetRequest, context: Context) -> pb.ModelsGetResponse:
        """One version, served or not."""
        try:
            info = convert.model_info(self._repository.find(request.model, request.version))
        except ModelUnavailableError as error:
            info = convert.problem_info(self._repository.problems[request.model, int(str(error.facts["version"]))])
        return pb.ModelsGetResponse(model=info)
