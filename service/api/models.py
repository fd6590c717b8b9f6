"""The `Models` service."""

from __future__ import annotations

import grpc

from carousel.v1 import models_pb2 as pb
from carousel.v1 import models_pb2_grpc
from service.api import answers, constants
from service.api.caller import CALLER
from service.errors import ModelUnavailableError
from service.hosting import Hosting
from service.repository.bundle import Bundle
from service.repository.manifest import EmitsSpec
from service.repository.repository import Problem

Context = grpc.aio.ServicerContext[object, object]


class Models(models_pb2_grpc.ModelsServicer):
    """Lists, loads and unloads models. max_answer_bytes: the most bytes of one response."""

    def __init__(self, hosting: Hosting, *, max_answer_bytes: int) -> None:
        self._max_answer_bytes = max_answer_bytes
        self._hosting = hosting
        self._repository = hosting.repository

    async def List(self, request: pb.ModelsListRequest, context: Context) -> pb.ModelsListResponse:
        """Returns every version in the repository, served or not."""
        infos = [model_info(bundle) for bundle in self._repository.bundles.values()]
        infos += [problem_info(problem) for problem in self._repository.problems.values()]
        return pb.ModelsListResponse(models=sorted(infos, key=lambda info: (info.model, info.version)))

    async def Get(self, request: pb.ModelsGetRequest, context: Context) -> pb.ModelsGetResponse:
        """Returns one version, served or not."""
        try:
            info = model_info(self._repository.find(request.model, request.version))
        except ModelUnavailableError as error:
            info = problem_info(self._repository.problems[request.model, int(str(error.facts["version"]))])
        return pb.ModelsGetResponse(model=info)

    async def Load(self, request: pb.ModelsLoadRequest, context: Context) -> pb.ModelsLoadResponse:
        """Loads versions and returns them. A response that would be too large has no vocabularies: an error would be
        wrong, because the versions are loaded already."""
        CALLER.get().check_admin("load")
        found = await self._hosting.load(request.model, request.version)
        response = pb.ModelsLoadResponse(models=map(_info, found))
        if response.ByteSize() > self._max_answer_bytes:
            for info in response.models:
                for field in ("source_vocabulary", "target_vocabulary", "input_vocabulary"):
                    info.ClearField(field)
        return response

    async def Unload(self, request: pb.ModelsUnloadRequest, context: Context) -> pb.ModelsUnloadResponse:
        """Stops serving one version. Returns how many sessions still use it."""
        CALLER.get().check_admin("unload")
        count = await self._hosting.unload(request.model, request.version)
        return pb.ModelsUnloadResponse(session_count=count)


def model_info(bundle: Bundle) -> pb.ModelInfo:
    """Returns the message of a version that is served."""
    manifest, source, read = bundle.manifest, bundle.source_vocabulary, bundle.step_vocabulary
    target = bundle.target_vocabulary
    return pb.ModelInfo(
        model=manifest.model,
        version=manifest.version,
        variants=list(bundle.variants),
        description=manifest.description,
        status=pb.MODEL_STATUS_SERVING,
        has_encoder=manifest.encoder is not None,
        source_vocabulary=source.names if source else (),
        source_feature_size=manifest.encoder.feature_size if manifest.encoder else 0,
        input_vocabulary=read.names if read and manifest.input_vocabulary else (),
        tokenizer=read.tokenizer if read else "",
        feature_size=manifest.step.feature_size,
        target_vocabulary=target.names if target else (),
        value_size=manifest.step.value_size,
        can_generate=manifest.can_generate,
        trace=[output.name for output in manifest.trace.outputs] if manifest.trace else (),
        max_batch_rows=manifest.step.max_rows or 0,
        max_source_length=manifest.encoder.max_given_length if manifest.encoder else 0,
        max_tokens=manifest.max_tokens,
        sample_rate=manifest.sample_rate or 0,
        state_size_bytes=bundle.state_size_bytes,
        inputs=answers.ports(manifest.step.inputs),
        outputs=answers.ports(manifest.step.outputs),
        constants=constants.infos(manifest),
        transducer=_transducer(manifest.step.emits),
        manifest_digest=bundle.manifest_digest,
    )


def _transducer(emits: EmitsSpec | None) -> pb.Transducer | None:
    if emits is None:
        return None
    return pb.Transducer(blank_id=emits.blank_id, max_symbols=emits.max_symbols, num_frames=emits.num_frames)


def problem_info(problem: Problem) -> pb.ModelInfo:
    """Returns the message of a version that could not be loaded."""
    return pb.ModelInfo(
        model=problem.model,
        version=problem.version,
        status=pb.MODEL_STATUS_FAILED,
        problem=problem.reason,
    )


def _info(found: Bundle | Problem) -> pb.ModelInfo:
    return problem_info(found) if isinstance(found, Problem) else model_info(found)
