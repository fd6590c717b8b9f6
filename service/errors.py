"""The domain's errors, split by whose fault they are.

    CarouselError
    ├── CallerError                    the request is wrong; sending it again will not help
    │   ├── InvalidFieldError          a field has a value that it must not have
    │   │   ├── TokenOutOfVocabularyError
    │   │   ├── UnknownTokenError      a token name or a grapheme that the vocabulary lacks
    │   │   ├── EmptySequenceError
    │   │   └── SequenceTooLongError
    │   ├── ModelNotFoundError
    │   ├── SessionNotFoundError
    │   ├── SessionIdInUseError
    │   ├── SessionAlreadyOpenError    a second Open
    │   ├── SessionNotOpenError        Feed before Open
    │   ├── PositionMismatchError
    │   ├── IllegalRequestError        not in the session's present state
    │   ├── MarkNotFoundError          Rewind to where no mark is
    │   ├── OutputsLostError           outputs asked for again are no longer kept
    │   └── SnapshotError              these bytes are no snapshot
    │       ├── SnapshotCorruptError   they were one, and have been changed
    │       ├── SnapshotFormatError    a later server's
    │       ├── SnapshotKeyError       signed with another key
    │       ├── SnapshotModelError     of a model that is not served here as it was
    │       └── SnapshotExpiredError   of a session that is too old
    ├── AccessError                    the caller may not do this
    │   ├── UnauthenticatedError       nobody knows who it is
    │   └── ForbiddenError             it is known, and may not
    ├── LoadError                      the server is full, or leaving; sending it again may help
    │   ├── AnswerTooLargeError        the answer would be over the limit of a message: asking for less helps
    │   ├── TooManyCallsError
    │   ├── TooManySessionsError
    │   │   └── NoSlotError            some of them could be put aside
    │   ├── QueueFullError
    │   ├── RateLimitedError           the principal asks too often
    │   ├── ShuttingDownError
    │   ├── StoreUnavailableError      the store is down, slow or full
    │   └── SessionMovedError          another stream, or another server, has gone on with the session
    ├── RequestCancelledError          the caller, or the end of its session, ended it
    └── ServerError                    ours
        ├── ModelUnavailableError      the bundle could not be loaded
        └── EngineError                a graph run failed

Errors carry facts; `api.status` alone turns them into gRPC statuses. Messages quote a request's values by `quoted`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_QUOTED_LENGTH = 140
"""A whole session id of the greatest length, and some more."""
_QUOTED_ITEMS = 8
INTERNAL = "internal error: see the server's log"
"""What clients are told of a bug of the server's."""


def quoted(value: object) -> str:
    """A value of a request as a message shows it: its `repr`, cut short. Takes the same time for any size."""
    if isinstance(value, list | tuple):
        shown = ", ".join(map(quoted, value[:_QUOTED_ITEMS]))
        return f"[{shown}]" if len(value) <= _QUOTED_ITEMS else f"[{shown}, ... {len(value)} in all]"
    if isinstance(value, str) and len(value) > _QUOTED_LENGTH:
        value = value[:_QUOTED_LENGTH] + "..."
    elif isinstance(value, bytes) and len(value) > _QUOTED_LENGTH:
        value = value[:_QUOTED_LENGTH] + b"..."
    return shortened(repr(value), 2 * _QUOTED_LENGTH)


def shortened(text: str, limit: int) -> str:
    """A text, or as much of its beginning as `limit` characters hold together with three dots that say so."""
    return text if len(text) <= limit else text[: max(0, limit - 3)] + "..."


class CarouselError(Exception):
    """Root of the tree. message: for people; field: the request field at fault, if one is; facts: by name."""

    def __init__(self, message: str, *, field: str = "", retry_delay_s: float | None = None, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_delay_s = retry_delay_s
        self.facts = facts


class CallerError(CarouselError):
    """The request is wrong."""


class InvalidFieldError(CallerError):
    """A field has a value that it must not have."""


class TokenOutOfVocabularyError(InvalidFieldError):
    """A token id is not in the vocabulary."""


class UnknownTokenError(InvalidFieldError):
    """A token name, or a character of a text, is not in the vocabulary."""


class EmptySequenceError(InvalidFieldError):
    """A sequence that must have tokens has none."""


class SequenceTooLongError(InvalidFieldError):
    """A sequence is over a limit."""


class ModelNotFoundError(CallerError):
    """No such model, or no such version of it."""


class SessionNotFoundError(CallerError):
    """No such session now; the message says what became of it when that is known."""


class SessionIdInUseError(CallerError):
    """Another stream has a session of that id."""


class SessionAlreadyOpenError(CallerError):
    """This stream has already opened a session of that id."""


class SessionNotOpenError(CallerError):
    """The request needs a session and none is open on this stream."""


class PositionMismatchError(CallerError):
    """The position of a feed or a generation is not the session's."""


class IllegalRequestError(CallerError):
    """The session's present state does not allow the request."""


class MarkNotFoundError(CallerError):
    """The session has no mark there."""


class OutputsLostError(CallerError):
    """Outputs of a generation that were asked for again are no longer kept."""


class SnapshotError(CallerError):
    """Bytes that should be a snapshot are none."""


class SnapshotCorruptError(SnapshotError):
    """A snapshot is not as it was made."""


class SnapshotFormatError(SnapshotError):
    """A snapshot has a format that this server does not know."""


class SnapshotKeyError(SnapshotError):
    """A snapshot was signed with another key."""


class SnapshotModelError(SnapshotError):
    """The model that a snapshot is of is not served here, or not as it was."""


class SnapshotExpiredError(SnapshotError):
    """A snapshot is of a session that is older than this server allows."""


class AccessError(CarouselError):
    """The caller may not do this."""


class UnauthenticatedError(AccessError):
    """Who calls is not known."""


class ForbiddenError(AccessError):
    """Who calls may not do this."""


class LoadError(CarouselError):
    """The server cannot take the request now."""


class AnswerTooLargeError(LoadError):
    """The answer would be larger than one message may be. It has no retry delay: the same request never succeeds."""


class TooManyCallsError(LoadError):
    """The server has as many calls in progress as it may have."""


class TooManySessionsError(LoadError):
    """The server has as many sessions as it may have."""


class NoSlotError(TooManySessionsError):
    """Every session slot of a model is taken."""


class QueueFullError(LoadError):
    """A bounded queue is full."""


class TooManyWatchersError(LoadError):
    """The session has as many watchers as it may have."""


class WatcherDroppedError(LoadError):
    """A watcher did not read as fast as its session moved."""


class RateLimitedError(LoadError):
    """The principal makes more requests than it may."""


class ShuttingDownError(LoadError):
    """The server is leaving and takes nothing new."""


class StoreUnavailableError(LoadError):
    """The store cannot do it now."""


class FeedUncertainError(LoadError):
    """A feed without a position was applied, and could not be stored: it must not be sent again as it was."""


class SessionMovedError(LoadError):
    """Another stream, or another server, has gone on with the session."""


class RequestCancelledError(CarouselError):
    """The request was ended before it was done."""


class ServerError(CarouselError):
    """The server's own fault."""


class ModelUnavailableError(ServerError):
    """The model is in the repository but could not be loaded."""


class EngineError(ServerError):
    """A graph run failed."""


def position_mismatch(field: str, given: int, position: int) -> PositionMismatchError:
    """The error for a request that starts elsewhere than where the session is."""
    return PositionMismatchError(
        f"{field} = {given}, but the session is at position {position}", field=field, position=position
    )


def too_many_in_flight(name: str, count: int, limit: int) -> QueueFullError:
    """The error for a request of a session that has too many without an answer. name: the session's."""
    return QueueFullError(
        f"session {name!r} has {count} requests in flight, the limit (max_in_flight): wait for responses first",
        retry_delay_s=0.1,
        max_in_flight=limit,
    )


def report(error: Exception) -> None:
    """Reports what a callback raised to the event loop."""
    asyncio.get_running_loop().call_exception_handler({"message": "a callback failed", "exception": error})


def guarded(call: Callable[..., object], *arguments: object) -> bool:
    """Calls. What it raises is reported to the event loop and stops nothing. Returns whether it raised nothing."""
    try:
        call(*arguments)
    except Exception as error:
        report(error)
        return False
    return True
