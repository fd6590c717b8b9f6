"""The `Models` service."""

from __future__ import annotations

import grpc

from carousel.v1 import models_pb2 as pb
from carousel.v1 import models_pb2_grpc
from service.api import convert
from service.api.caller import CALLER
from service.errors import ModelUnavailableError
from service.hosting import Hosting
from service.repository.bundle import Bundle
from service.repository.repository import Problem

Context = grpc.aio.ServicerContext[object, object]


class Models(models_pb2_grpc.ModelsServicer):
    """Tells which models are served, and loads and unloads them."""

    def __init__(self, hosting: Hosting) -> None:
        self._hosting = hosting
        self._repository = hosting.repository

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

    async def Load(self, request: pb.ModelsLoadRequest, context: Context) -> pb.ModelsLoadResponse:
        """What is new."""
        CALLER.get().check_admin("load")
        found = await self._hosting.load(request.model, request.version)
        return pb.ModelsLoadResponse(models=map(_info, found))

    async def Unload(self, request: pb.ModelsUnloadRequest, context: Context) -> pb.ModelsUnloadResponse:
        """One version."""
        CALLER.get().check_admin("unload")
        count = await self._hosting.unload(request.model, request.version)
        return pb.ModelsUnloadResponse(session_count=count)


def _info(found: Bundle | Problem) -> pb.ModelInfo:
    return convert.problem_info(found) if isinstance(found, Problem) else convert.model_info(found)
