"""The blocking client's calls about sessions, whoever opened them."""

from __future__ import annotations

from collections.abc import Iterator

from carousel import _admin_requests, _answers
from carousel._channel import session_metadata
from carousel._home import Unpicklable
from carousel._unary import unary
from carousel.v1 import sessions_pb2
from carousel.v1.sessions_pb2_grpc import SessionsStub
from carousel.values import Emitted, SessionInfo, StateTensor


class Sessions(Unpicklable):
    """The live sessions of a server, whoever opened them: `Client.sessions`. Threads may share it."""

    def __init__(self, stub: SessionsStub, timeout: float | None) -> None:
        self._stub = stub
        self._timeout = timeout

    def list(self, model: str | None = None, *, page_size: int = 0) -> Iterator[SessionInfo]:
        """All sessions, or those of one model, in the order in which they were opened.

        Pages are fetched as they are needed. page_size: 1 to 1,000; 0 for the server's default.
        """
        request: sessions_pb2.SessionsListRequest | None = _admin_requests.sessions_request(model, page_size)
        while request is not None:
            response = unary(self._stub.List, request, self._timeout)
            yield from map(_answers.session_info, response.sessions)
            request = _admin_requests.next_page(request, response)

    def get(self, session_id: str) -> SessionInfo:
        """One session. Raises NotFoundError, whose metadata says why a session ended, if the server remembers."""
        request = sessions_pb2.SessionsGetRequest(session_id=session_id)
        response = unary(self._stub.Get, request, self._timeout, session_metadata(session_id))
        return _answers.session_info(response.session)

    def close(self, session_id: str) -> int:
        """Closes a session, whoever opened it, and notifies its client. Returns its last position.

        Raises NotFoundError.
        """
        request = sessions_pb2.SessionsCloseRequest(session_id=session_id)
        return unary(self._stub.Close, request, self._timeout, session_metadata(session_id)).position

    def close_all(self, principal: str = "") -> int:
        """Closes all sessions of a principal, yours when none is named: those of the server that answers, and all that
        are stored. Notifies their clients. Returns how many were closed. Only an admin may name another principal.

        Raises PermissionDeniedError; UnavailableError when some could not be closed: call it again.
        """
        request = sessions_pb2.SessionsCloseAllRequest(principal=principal)
        return unary(self._stub.CloseAll, request, self._timeout).closed_count

    def snapshot(self, session_id: str) -> bytes:
        """A session as bytes, signed by the server, for `restore`: its state, its source, and its generation.

        The session goes on undisturbed on the server that has it. Another server takes it over first, and its client
        resumes it there. Raises NotFoundError.
        """
        request = sessions_pb2.SessionsSnapshotRequest(session_id=session_id)
        return unary(self._stub.Snapshot, request, self._timeout, session_metadata(session_id)).snapshot

    def restore(self, snapshot: bytes, *, session_id: str = "", version: int | None = None) -> SessionInfo:
        """Makes a session of a snapshot, on any server that serves the same bundle and has the same key; use it with
        `Client.resume`. session_id: empty for that of the session it was taken of. version: another version of the
        model to use, whose state has the same names, types and shapes.

        The copy waits to be resumed as if its stream had ended: for the `hold_s` of its `on_disconnect`; one that would
        end with its stream waits for the server's `hold_s`, a minute by default.

        Raises InvalidArgumentError, FailedPreconditionError when the model is not served as it was, AlreadyExistsError,
        and CarouselError of code DATA_LOSS, PERMISSION_DENIED or UNIMPLEMENTED for bytes that were changed, signed with
        another key, or are a later server's.
        """
        request = _admin_requests.restore_request(snapshot, session_id, version)
        response = unary(self._stub.Restore, request, self._timeout, session_metadata(session_id))
        return _answers.session_info(response.session)

    def fork(self, session_id: str, fork_session_id: str = "") -> SessionInfo:
        """Makes a copy of a session, without its generation; use it with `Client.resume`, before the copy's time is
        over: see `restore`. fork_session_id: empty to have one made.

        Raises NotFoundError, AlreadyExistsError, ResourceExhaustedError.
        """
        request = sessions_pb2.SessionsForkRequest(session_id=session_id, fork_session_id=fork_session_id)
        response = unary(self._stub.Fork, request, self._timeout, session_metadata(session_id))
        return _answers.session_info(response.session)

    def rewind(self, session_id: str, position: int) -> SessionInfo:
        """Sets a session back to a mark. Use `Session.rewind` for a session of this program: another client's history
        of the session does not apply afterwards, and its next call fails.

        Raises NotFoundError; FailedPreconditionError when the session has no mark there, or is busy.
        """
        request = sessions_pb2.SessionsRewindRequest(session_id=session_id, position=position)
        response = unary(self._stub.Rewind, request, self._timeout, session_metadata(session_id))
        return _answers.session_info(response.session)

    def get_state(self, session_id: str, *names: str) -> tuple[StateTensor, ...]:
        """The state tensors of a session, all when no name is given. Raises NotFoundError, InvalidArgumentError."""
        request = sessions_pb2.SessionsGetStateRequest(session_id=session_id, names=names)
        response = unary(self._stub.GetState, request, self._timeout, session_metadata(session_id))
        return tuple(map(_answers.state_tensor, response.tensors))

    def emitted(self, session_id: str) -> Emitted:
        """What a session of a transducer has emitted so far; nothing of another model. Raises NotFoundError."""
        request = sessions_pb2.SessionsGetStateRequest(session_id=session_id)
        response = unary(self._stub.GetState, request, self._timeout, session_metadata(session_id))
        return Emitted(_answers.tokens(response.emitted), response.num_emitted)

    def set_state(self, session_id: str, *tensors: StateTensor) -> None:
        """Writes state tensors of a session, each as the model's are; the others stay, and so does its position. Raises
        NotFoundError, InvalidArgumentError, FailedPreconditionError when it is busy."""
        request = _admin_requests.state_request(session_id, tensors)
        unary(self._stub.SetState, request, self._timeout, session_metadata(session_id))
