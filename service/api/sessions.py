"""The `Sessions` service."""

from __future__ import annotations

import time

import grpc

from carousel.v1 import inference_pb2, sessions_pb2_grpc
from carousel.v1 import sessions_pb2 as pb
from service.api import convert
from service.errors import InvalidFieldError
from service.sessions.registry import Registry
from service.sessions.session import CloseReason

Context = grpc.aio.ServicerContext[object, object]
_MAX_PAGE_SIZE = 1000


class Sessions(sessions_pb2_grpc.SessionsServicer):
    """Looks at the live sessions and closes them."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def Get(self, request: pb.SessionsGetRequest, context: Context) -> pb.SessionsGetResponse:
        """One session."""
        session = self._registry.get(request.session_id)
        return pb.SessionsGetResponse(session=convert.session_info(session, time.monotonic(), time.time()))

    async def List(self, request: pb.SessionsListRequest, context: Context) -> pb.SessionsListResponse:
        """A page of sessions."""
        size = request.page_size or 100
        if size > _MAX_PAGE_SIZE:
            raise InvalidFieldError(f"page_size = {size} must be 1 to {_MAX_PAGE_SIZE}", field="page_size")
        if request.page_token and not (request.page_token.isascii() and request.page_token.isdecimal()):
            raise InvalidFieldError(
                f"page_token = {request.page_token!r} is not one that a page gave", field="page_token"
            )
        found = self._registry.page(int(request.page_token or 0), size + 1, request.model)
        now = time.monotonic(), time.time()
        return pb.SessionsListResponse(
            sessions=[convert.session_info(session, *now) for session in found[:size]],
            next_page_token=str(found[size - 1].serial) if len(found) > size else "",
            total_count=len(self._registry),
        )

    async def Close(self, request: pb.SessionsCloseRequest, context: Context) -> pb.SessionsCloseResponse:
        """Closes a session, whoever opened it; its stream is told."""
        session = self._registry.get(request.session_id)
        self._registry.close(session, CloseReason.CLIENT, notify=True)
        return pb.SessionsCloseResponse(position=session.position, reason=inference_pb2.CLOSE_REASON_CLIENT)
