"""The errors of the domain, grouped by whose fault they are.

    CarouselError
    ├── CallerError                    the request is wrong; a retry does not help
    │   ├── InvalidFieldError          a field has a value that is not allowed
    │   │   ├── TokenOutOfVocabularyError
    │   │   ├── UnknownTokenError      the vocabulary has no such token name or grapheme
    │   │   ├── EmptySequenceError
    │   │   └── SequenceTooLongError
    │   ├── ModelNotFoundError
    │   ├── SessionNotFoundError
    │   ├── SessionIdInUseError
    │   ├── SessionAlreadyOpenError    a second Open
    │   ├── SessionNotOpenError        Feed before Open
    │   ├── PositionMismatchError
    │   ├── IllegalRequestError        not allowed in the session's present state
    │   ├── MarkNotFoundError          Rewind to a position without a mark
    │   ├── OutputsLostError           outputs to be replayed are no longer kept
    │   └── SnapshotError              the bytes are not a valid snapshot
    │       ├── SnapshotCorruptError   the snapshot was changed
    │       ├── SnapshotFormatError    a later server made the snapshot
    │       ├── SnapshotKeyError       signed with another key
    │       ├── SnapshotModelError     its model is not served here, or has changed
    │       └── SnapshotExpiredError   its session is too old
    ├── AccessError                    the caller may not do this
    │   ├── UnauthenticatedError       the caller's identity is not known
    │   └── ForbiddenError             the caller is known and lacks the permission
    ├── LoadError                      the server is overloaded or shutting down; a retry may help
    │   ├── AnswerTooLargeError        the answer exceeds the limit of a message: asking for less helps
    │   ├── TooManyCallsError
    │   ├── TooManySessionsError
    │   │   └── NoSlotError            some sessions could be spilled
    │   ├── QueueFullError
    │   ├── TooManyWatchersError
    │   ├── WatcherDroppedError        the watcher reads too slowly
    │   ├── RateLimitedError           the principal makes too many requests
    │   ├── ShuttingDownError
    │   ├── StoreUnavailableError      the store is down, slow or full
    │   ├── FeedUncertainError         the feed was applied, but not stored
    │   └── SessionMovedError          another stream, or another server, has resumed the session
    ├── RequestCancelledError          cancelled by the caller, or by the end of its session
    └── ServerError                    the server's fault
        ├── ModelUnavailableError      the bundle could not be loaded
        └── EngineError                a graph run failed

Errors carry facts; only `api.status` turns them into gRPC statuses. Messages show a request's values by `quoted`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

QUOTED_LENGTH = 140
"""Most characters of a text that are shown. It holds the longest session id and some more."""
_QUOTED_ITEMS = 8
INTERNAL = "internal error: see the server's log"
"""The message that clients get for a bug of the server."""


def quoted(value: object) -> str:
    """Returns a request's value for use in a message: its `repr`, shortened. Takes the same time for any size."""
    if isinstance(value, list | tuple):
        shown = ", ".join(map(quoted, value[:_QUOTED_ITEMS]))
        return f"[{shown}]" if len(value) <= _QUOTED_ITEMS else f"[{shown}, ... {len(value)} in all]"
    if isinstance(value, str) and len(value) > QUOTED_LENGTH:
        value = value[:QUOTED_LENGTH] + "..."
    elif isinstance(value, bytes) and len(value) > QUOTED_LENGTH:
        value = value[:QUOTED_LENGTH] + b"..."
    return shortened(repr(value), 2 * QUOTED_LENGTH)


def shortened(text: str, limit: int) -> str:
    """Returns the text, or its beginning followed by "...", with at most `limit` characters in all."""
    return text if len(text) <= limit else text[: max(0, limit - 3)] + "..."


class CarouselError(Exception):
    """The root of the tree. message: for people; field: the request's field at fault, or empty; retry_delay_s: seconds
    after which a retry may succeed, None if unknown; facts: details by name."""

    def __init__(self, message: str, *, field: str = "", retry_delay_s: float | None = None, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_delay_s = retry_delay_s
        self.facts = facts


class CallerError(CarouselError):
    """The request is wrong."""


class InvalidFieldError(CallerError):
    """A field has a value that is not allowed."""


class TokenOutOfVocabularyError(InvalidFieldError):
    """A token id is not in the vocabulary."""


class UnknownTokenError(InvalidFieldError):
    """A token name, or a character of a text, is not in the vocabulary."""


class EmptySequenceError(InvalidFieldError):
    """A sequence that needs tokens is empty."""


class SequenceTooLongError(InvalidFieldError):
    """A sequence is longer than a limit."""


class ModelNotFoundError(CallerError):
    """The model, or this version of it, does not exist."""


class SessionNotFoundError(CallerError):
    """The session does not exist. The message says why it ended, if that is known."""


class SessionIdInUseError(CallerError):
    """Another stream has a session with this id."""


class SessionAlreadyOpenError(CallerError):
    """This stream has already opened a session with this id."""


class SessionNotOpenError(CallerError):
    """The request needs a session, and none is open on this stream."""


class PositionMismatchError(CallerError):
    """A feed or a generation names another position than the session's."""


class IllegalRequestError(CallerError):
    """The session's present state does not allow the request."""


class MarkNotFoundError(CallerError):
    """The session has no mark at this position."""


class OutputsLostError(CallerError):
    """Outputs of a feed, generation or search were requested again and are no longer kept."""


class SnapshotError(CallerError):
    """The bytes are not a valid snapshot."""


class SnapshotCorruptError(SnapshotError):
    """A snapshot was changed after it was made."""


class SnapshotFormatError(SnapshotError):
    """A snapshot has a format that this server does not know."""


class SnapshotKeyError(SnapshotError):
    """A snapshot was signed with another key."""


class SnapshotModelError(SnapshotError):
    """The snapshot's model is not served here, or has changed."""


class SnapshotExpiredError(SnapshotError):
    """The snapshot's session is older than this server allows."""


class AccessError(CarouselError):
    """The caller may not do this."""


class UnauthenticatedError(AccessError):
    """The caller's identity is not known."""


class ForbiddenError(AccessError):
    """The caller is known and may not do this."""


class LoadError(CarouselError):
    """The server cannot take the request now."""


class AnswerTooLargeError(LoadError):
    """The answer would be larger than a message may be. It has no retry delay: the same request never succeeds."""


class TooManyCallsError(LoadError):
    """The server already has the maximum number of calls in progress."""


class TooManySessionsError(LoadError):
    """The server already has the maximum number of sessions."""


class NoSlotError(TooManySessionsError):
    """Every session slot of a model is in use."""


class QueueFullError(LoadError):
    """A bounded queue is full."""


class TooManyWatchersError(LoadError):
    """The session already has the maximum number of watchers."""


class WatcherDroppedError(LoadError):
    """A watcher read more slowly than its session moved."""


class RateLimitedError(LoadError):
    """The principal makes more requests than it is allowed to."""


class ShuttingDownError(LoadError):
    """The server is shutting down and accepts nothing new."""


class StoreUnavailableError(LoadError):
    """The store cannot do the operation now."""


class FeedUncertainError(LoadError):
    """A feed without a position was applied but could not be stored. The client must not send it again unchanged."""


class SessionMovedError(LoadError):
    """Another stream, or another server, has resumed the session."""


class RequestCancelledError(CarouselError):
    """The request was cancelled before it was done."""


class ServerError(CarouselError):
    """The server is at fault."""


class ModelUnavailableError(ServerError):
    """The model is in the repository but could not be loaded."""


class EngineError(ServerError):
    """A graph run failed."""


def position_mismatch(field: str, given: int, position: int) -> PositionMismatchError:
    """Returns the error for a request that starts at another position than the session's."""
    return PositionMismatchError(
        f"{field} = {given}, but the session is at position {position}", field=field, position=position
    )


def too_many_in_flight(name: str, count: int, limit: int) -> QueueFullError:
    """Returns the error for a session with too many unanswered requests. name, count: the session's."""
    return QueueFullError(
        f"session {name!r} has {count} requests in flight, the limit (max_in_flight): wait for responses first",
        retry_delay_s=0.1,
        max_in_flight=limit,
    )


def report(error: Exception) -> None:
    """Reports an error that a callback raised to the event loop's exception handler."""
    asyncio.get_running_loop().call_exception_handler({"message": "a callback failed", "exception": error})


def guarded(call: Callable[..., object], *arguments: object) -> bool:
    """Calls the function. Reports an Exception that it raises to the event loop. Returns whether it raised none."""
    try:
        call(*arguments)
    except Exception as error:
        report(error)
        return False
    return True
