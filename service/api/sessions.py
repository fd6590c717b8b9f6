"""The `Sessions` service."""

from __future__ import annotations

import grpc

from carousel.v1 import inference_pb2, sessions_pb2_grpc
from carousel.v1 import sessions_pb2 as pb
from service.api import convert
from service.api.caller import CALLER
from service.api.session_messages import emitted_so_far, session_info, state_tensor, tensor_message
from service.errors import InvalidFieldError
from service.repository.repository import check_name
from service.sessions.checks import check_principal
from service.sessions.service import SessionService
from service.sessions.session import Session

Context = grpc.aio.ServicerContext[object, object]
_MAX_PAGE_SIZE = 1000
_PAGE_BYTES = 64
"""The most bytes of a page besides its sessions."""
_ITEM_BYTES = 4
"""The most bytes that frame one session in a page."""


class Sessions(sessions_pb2_grpc.SessionsServicer):
    """Reads, copies, changes and closes sessions."""

    def __init__(self, sessions: SessionService) -> None:
        self._sessions = sessions
        self._registry = sessions.registry
        self._admin = sessions.admin

    async def Get(self, request: pb.SessionsGetRequest, context: Context) -> pb.SessionsGetResponse:
        """Returns one session."""
        return pb.SessionsGetResponse(
            session=_info(await self._sessions.resume.here(CALLER.get().any_key(request.session_id)))
        )

    async def List(self, request: pb.SessionsListRequest, context: Context) -> pb.SessionsListResponse:
        """Returns a page of sessions. An admin sees all, any other principal its own."""
        size = request.page_size or 100
        if size > _MAX_PAGE_SIZE:
            raise InvalidFieldError(f"page_size = {size} must be 1 to {_MAX_PAGE_SIZE}", field="page_size")
        if request.model:
            check_name(request.model)
        self._registry.leases.check()
        after = convert.parse_page_token(request.page_token)
        principal = CALLER.get().principal
        owner = None if principal.is_admin else principal.name
        found = self._sessions.directory.page(after, size + 1, request.model, owner)
        infos: list[pb.SessionInfo] = []
        room = self._sessions.limits.max_answer_bytes - _PAGE_BYTES
        for session in found[:size]:
            info = _info(session)
            room -= info.ByteSize() + _ITEM_BYTES
            if room < 0 and infos:
                break
            infos.append(info)
        return pb.SessionsListResponse(
            sessions=infos,
            next_page_token=str(found[len(infos) - 1].serial) if len(found) > len(infos) else "",
            total_count=self._sessions.directory.count(owner or ""),
        )

    async def Close(self, request: pb.SessionsCloseRequest, context: Context) -> pb.SessionsCloseResponse:
        """Closes a session, whoever opened it, and notifies its stream."""
        position = await self._sessions.resume.close(CALLER.get().any_key(request.session_id))
        return pb.SessionsCloseResponse(position=position, reason=inference_pb2.CLOSE_REASON_CLIENT)

    async def CloseAll(self, request: pb.SessionsCloseAllRequest, context: Context) -> pb.SessionsCloseAllResponse:
        """Closes all sessions of a principal."""
        caller, principal = CALLER.get(), request.principal
        if principal:
            check_principal(principal)
        if principal not in ("", caller.principal.name):
            caller.check_admin("Sessions.CloseAll of another principal")
        count = await self._sessions.closing.close_all(principal or caller.principal.name)
        return pb.SessionsCloseAllResponse(closed_count=count)

    async def Snapshot(self, request: pb.SessionsSnapshotRequest, context: Context) -> pb.SessionsSnapshotResponse:
        """Returns a session as bytes."""
        snapshot, position = await self._admin.snapshot(CALLER.get().any_key(request.session_id))
        return pb.SessionsSnapshotResponse(snapshot=snapshot, position=position)

    async def Restore(self, request: pb.SessionsRestoreRequest, context: Context) -> pb.SessionsRestoreResponse:
        """Makes a session from a snapshot."""
        version = request.version if request.HasField("version") else None
        if version == 0:
            raise InvalidFieldError("version = 0 must be 1 or more: set the version", field="version")
        caller = CALLER.get()
        session = await self._sessions.resume.restore(
            request.snapshot,
            request.session_id,
            version,
            caller.new_key,
            owner=caller.principal.name,
            max_owned=caller.principal.max_sessions,
        )
        return pb.SessionsRestoreResponse(session=_info(session))

    async def Fork(self, request: pb.SessionsForkRequest, context: Context) -> pb.SessionsForkResponse:
        """Copies a session."""
        caller = CALLER.get()
        session = await self._admin.fork(
            caller.any_key(request.session_id),
            caller.new_key(request.fork_session_id, field="fork_session_id"),
            caller.principal.max_sessions,
        )
        return pb.SessionsForkResponse(session=_info(session))

    async def Rewind(self, request: pb.SessionsRewindRequest, context: Context) -> pb.SessionsRewindResponse:
        """Rewinds a session to a mark."""
        session = await self._admin.rewind(CALLER.get().any_key(request.session_id), request.position)
        info = _info(session)
        info.position = request.position  # the session may have moved since
        return pb.SessionsRewindResponse(session=info)

    async def GetState(self, request: pb.SessionsGetStateRequest, context: Context) -> pb.SessionsGetStateResponse:
        """Returns the state of a session."""
        session, lane, tensors = await self._admin.read(CALLER.get().any_key(request.session_id), request.names)
        emitted, num_emitted = emitted_so_far(session.served.bundle, lane)
        return pb.SessionsGetStateResponse(
            position=lane.position,
            tensors=map(tensor_message, tensors),
            emitted=emitted,
            num_emitted=num_emitted,
            pending_token_ids=[item for item in lane.pending if isinstance(item, int)],
            pending_features=[item for item in lane.pending if isinstance(item, bytes)],
        )

    async def SetState(self, request: pb.SessionsSetStateRequest, context: Context) -> pb.SessionsSetStateResponse:
        """Replaces the state of a session."""
        position = await self._admin.write(
            CALLER.get().any_key(request.session_id), list(map(state_tensor, request.tensors))
        )
        return pb.SessionsSetStateResponse(position=position)


def _info(session: Session) -> pb.SessionInfo:
    """Returns the message of a session, with its id as the caller spells it."""
    info = session_info(session)
    info.session_id = CALLER.get().shown(session.id)
    return info
