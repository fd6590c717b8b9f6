"""The asyncio client's calls about existing sessions, including those of other clients."""

from __future__ import annotations

from collections.abc import AsyncIterator

from carousel import _admin_requests, _answers
from carousel._arguments import text
from carousel._async_call import unary
from carousel._channel import session_metadata
from carousel._home import Unpicklable
from carousel._tokens import uint
from carousel.v1 import sessions_pb2, sessions_pb2_grpc
from carousel.values import Emitted, SessionInfo, StateTensor


class AsyncSessions(Unpicklable):
    """The live sessions of a server, including those of other clients: `AsyncClient.sessions`. Tasks may share it."""

    def __init__(self, stub: sessions_pb2_grpc.SessionsAsyncStub, timeout: float | None) -> None:
        self._stub = stub
        self._timeout = timeout

    async def list(self, model: str | None = None, *, page_size: int = 0) -> AsyncIterator[SessionInfo]:
        """Yields all sessions, or those of one model, in the order in which they were opened.

        Fetches a page when it is needed. page_size: 1 to 1,000; 0 for the server's default.
        """
        request: sessions_pb2.SessionsListRequest | None = _admin_requests.sessions_request(model, page_size)
        while request is not None:
            response = await unary(self._stub.List, request, self._timeout)
            for message in response.sessions:
                yield _answers.session_info(message)
            request = _admin_requests.next_page(request, response)

    async def get(self, session_id: str) -> SessionInfo:
        """Returns one session. Raises NotFoundError; its metadata says why a session ended, if the server still
        knows."""
        request = sessions_pb2.SessionsGetRequest(session_id=text(session_id, "session_id"))
        response = await unary(self._stub.Get, request, self._timeout, session_metadata(session_id))
        return _answers.session_info(response.session)

    async def close(self, session_id: str) -> int:
        """Closes a session of any client, and notifies that client. Returns the session's last position.

        Raises NotFoundError.
        """
        request = sessions_pb2.SessionsCloseRequest(session_id=text(session_id, "session_id"))
        response = await unary(self._stub.Close, request, self._timeout, session_metadata(session_id))
        return response.position

    async def close_all(self, principal: str = "") -> int:
        """Closes all sessions of a principal that this server has, and all its stored sessions. Notifies their clients.
        Returns how many were closed. principal: empty for your own; only an admin may name another one.

        Raises PermissionDeniedError; UnavailableError when some could not be closed: call it again.
        """
        request = sessions_pb2.SessionsCloseAllRequest(principal=text(principal, "principal"))
        response = await unary(self._stub.CloseAll, request, self._timeout)
        return response.closed_count

    async def snapshot(self, session_id: str) -> bytes:
        """Returns a session as signed bytes, for `restore`: its state, its source, and its generation.

        The session continues undisturbed if the server that answers has it. Otherwise that server first takes the
        session over, and the session's client resumes there. Raises NotFoundError.
        """
        request = sessions_pb2.SessionsSnapshotRequest(session_id=text(session_id, "session_id"))
        response = await unary(self._stub.Snapshot, request, self._timeout, session_metadata(session_id))
        return response.snapshot

    async def restore(self, snapshot: bytes, *, session_id: str = "", version: int | None = None) -> SessionInfo:
        """Makes a session from a snapshot, on any server that has the same bundle and the same key. Use the session
        with `AsyncClient.resume`.

        session_id: empty for the id in the snapshot. version: use another version of the model, whose state has the
        same names, types and shapes.

        The new session is detached: it waits for a resume for the `hold_s` of its `on_disconnect`, or for the server's
        `hold_s`, a minute by default, if its `on_disconnect` is `free`.

        Raises InvalidArgumentError; FailedPreconditionError when the server does not serve that bundle;
        AlreadyExistsError; and CarouselError with code DATA_LOSS for changed bytes, PERMISSION_DENIED for another key,
        or UNIMPLEMENTED for a snapshot of a later server.
        """
        request = _admin_requests.restore_request(snapshot, session_id, version)
        response = await unary(self._stub.Restore, request, self._timeout, session_metadata(session_id))
        return _answers.session_info(response.session)

    async def fork(self, session_id: str, fork_session_id: str = "") -> SessionInfo:
        """Makes a copy of a session, without its generation. Use it with `AsyncClient.resume`, before its time to wait
        is over: see `restore`. fork_session_id: empty to let the server choose one.

        Raises NotFoundError, AlreadyExistsError, ResourceExhaustedError.
        """
        request = sessions_pb2.SessionsForkRequest(
            session_id=text(session_id, "session_id"), fork_session_id=text(fork_session_id, "fork_session_id")
        )
        response = await unary(self._stub.Fork, request, self._timeout, session_metadata(session_id))
        return _answers.session_info(response.session)

    async def rewind(self, session_id: str, position: int) -> SessionInfo:
        """Sets a session back to a mark. For a session of this program, use `AsyncSession.rewind`. If another client
        uses the session, its history is then wrong, and its next call fails.

        Raises NotFoundError; FailedPreconditionError when the session has no mark there, or is busy.
        """
        request = sessions_pb2.SessionsRewindRequest(
            session_id=text(session_id, "session_id"), position=uint(position, 64, "position")
        )
        response = await unary(self._stub.Rewind, request, self._timeout, session_metadata(session_id))
        return _answers.session_info(response.session)

    async def get_state(self, session_id: str, *names: str) -> tuple[StateTensor, ...]:
        """Returns a session's state tensors: the named ones, or all. Raises NotFoundError, InvalidArgumentError."""
        request = sessions_pb2.SessionsGetStateRequest(
            session_id=text(session_id, "session_id"),
            names=[text(name, f"names[{at}]") for at, name in enumerate(names)],
        )
        response = await unary(self._stub.GetState, request, self._timeout, session_metadata(session_id))
        return tuple(map(_answers.state_tensor, response.tensors))

    async def emitted(self, session_id: str) -> Emitted:
        """Returns the tokens that a transducer's session has emitted; none for other models. Raises NotFoundError."""
        request = sessions_pb2.SessionsGetStateRequest(session_id=text(session_id, "session_id"))
        response = await unary(self._stub.GetState, request, self._timeout, session_metadata(session_id))
        return Emitted(_answers.tokens(response.emitted), response.num_emitted)

    async def set_state(self, session_id: str, *tensors: StateTensor) -> None:
        """Replaces state tensors of a session. The type and shape of each must be the model's. Other tensors and the
        position do not change. Raises NotFoundError, InvalidArgumentError, FailedPreconditionError when it is busy."""
        request = _admin_requests.state_request(session_id, tensors)
        await unary(self._stub.SetState, request, self._timeout, session_metadata(session_id))
