"""The errors that calls raise. Each class stands for one gRPC status code of the server.

    CarouselError                       any other code
    ├── InvalidArgumentError            a field has a value that is not allowed
    ├── OutOfRangeError                 a value is outside its range
    ├── UnauthenticatedError            the server does not know the caller: see `token`
    ├── PermissionDeniedError           the caller is not allowed to do this
    ├── NotFoundError                   no such model, version or session
    ├── AlreadyExistsError              the session id is in use
    ├── FailedPreconditionError         not possible in the session's current state
    │   ├── PositionMismatchError       the session is at another position
    │   ├── SessionClosedError          the session was closed; raised by the client, without asking the server
    │   └── ConcurrentUseError          another thread uses the session; raised by the client
    ├── ResourceExhaustedError          the server is full, or a message is too large; see `retry_delay`
    ├── RequestCancelledError           the request was cancelled before it was complete
    ├── DeadlineExceededError           no answer in time
    ├── UnavailableError                the server cannot be reached, or the connection was lost
    ├── InternalError                   an error in the server
    └── UnimplementedError              the server does not know the call

An argument of a wrong type raises TypeError before anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from grpc import StatusCode

from carousel.values import CloseReason


class CarouselError(Exception):
    """Base class of all errors. It can be pickled.

    code: the gRPC status code. reason: a stable UPPER_SNAKE_CASE name of the cause; empty if the server gave none.
    message: text for people. field: the request field that is wrong, such as `feed.token_ids[3]`, or empty. metadata:
    details by name. retry_delay: how long to wait before a retry; None if the server sent none. request_id: the call's
    id in the server's access log and traces; empty when no server answered.
    """

    code = StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: StatusCode | None = None,
        reason: str = "",
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_delay: timedelta | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.reason = reason
        self.field = field
        self.metadata = dict(metadata or {})
        self.retry_delay = retry_delay
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.message} [{self.reason}]" if self.reason else self.message


class InvalidArgumentError(CarouselError):
    """A field has a value that is not allowed."""

    code = StatusCode.INVALID_ARGUMENT


class OutOfRangeError(CarouselError):
    """A value is outside its range."""

    code = StatusCode.OUT_OF_RANGE


class UnauthenticatedError(CarouselError):
    """The server does not know the caller: it requires a token or a client certificate."""

    code = StatusCode.UNAUTHENTICATED


class PermissionDeniedError(CarouselError):
    """The server knows the caller, but the caller is not allowed to do this."""

    code = StatusCode.PERMISSION_DENIED


class NotFoundError(CarouselError):
    """There is no such model, version or session."""

    code = StatusCode.NOT_FOUND


class AlreadyExistsError(CarouselError):
    """The session id is in use."""

    code = StatusCode.ALREADY_EXISTS


class FailedPreconditionError(CarouselError):
    """The request is not possible in the session's current state."""

    code = StatusCode.FAILED_PRECONDITION


class PositionMismatchError(FailedPreconditionError):
    """The session is not at the position that the request expected. `Session.position` now has the right position."""

    @property
    def expected_position(self) -> int:
        """The session's position on the server."""
        return int(self.metadata["position"])


class SessionClosedError(FailedPreconditionError):
    """The session was closed, by this client or by the server. The client raises it without asking the server."""

    @property
    def close_reason(self) -> CloseReason:
        """Why the session was closed."""
        return CloseReason(self.metadata["close_reason"])

    @property
    def position(self) -> int | None:
        """The position at which it was closed. A request that was in progress when another client or the server closed
        it may have consumed more tokens. None if the server did not answer the `close` of this program."""
        position = self.metadata.get("position")
        return None if position is None else int(position)


class ConcurrentUseError(FailedPreconditionError):
    """Another thread is in a call of this object, or the object belongs to another event loop. The call did nothing."""


class ResourceExhaustedError(CarouselError):
    """The server is full, or a message is too large. If there is a `retry_delay`, a retry after it may succeed."""

    code = StatusCode.RESOURCE_EXHAUSTED


class RequestCancelledError(CarouselError):
    """The request was cancelled before it was complete. `Session.position` is the session's position after it."""

    code = StatusCode.CANCELLED


class DeadlineExceededError(CarouselError):
    """No answer came in time. The server may still have run the request.

    It is safe to send the same feed of a session again, and the same `Client.step` if it has a `position`.
    """

    code = StatusCode.DEADLINE_EXCEEDED


class UnavailableError(CarouselError):
    """The server cannot be reached, is shutting down, or the connection was lost."""

    code = StatusCode.UNAVAILABLE


class InternalError(CarouselError):
    """An error in the server."""

    code = StatusCode.INTERNAL


class UnimplementedError(CarouselError):
    """The server does not know the call."""

    code = StatusCode.UNIMPLEMENTED
