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
    │       └── SnapshotModelError     of a model that is not served here as it was
    ├── AccessError                    the caller may not do this
    │   ├── UnauthenticatedError       nobody knows who it is
    │   └── ForbiddenError             it is known, and may not
    ├── LoadError                      the server is full, or leaving; sending it again may help
    │   ├── TooManySessionsError
    │   │   └── NoSlotError            some of them could be put aside
    │   ├── QueueFullError
    │   ├── AnswerTooLargeError        ask for less in one request
    │   ├── RateLimitedError           the principal asks too often
    │   ├── ShuttingDownError
    │   ├── StoreUnavailableError      the store is down, slow or full
    │   └── SessionMovedError          another stream, or another server, has gone on with the session
    ├── RequestCancelledError          the caller, or the end of its session, ended it
    └── ServerError                    ours
        ├── ModelUnavailableError      the bundle could not be loaded
        └── EngineError                a graph run failed

Errors carry facts; `api.status` alone turns them into gRPC statuses.
"""

from __future__ import annotations


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
    """A sequence, or the answer that it asks for, is over a limit."""


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


class AccessError(CarouselError):
    """The caller may not do this."""


class UnauthenticatedError(AccessError):
    """Who calls is not known."""


class ForbiddenError(AccessError):
    """Who calls may not do this."""


class LoadError(CarouselError):
    """The server cannot take the request now."""


class TooManySessionsError(LoadError):
    """The server has as many sessions as it may have."""


class NoSlotError(TooManySessionsError):
    """Every session slot of a model is taken."""


class QueueFullError(LoadError):
    """A bounded queue is full."""


class AnswerTooLargeError(LoadError):
    """The answer would be larger than a message may be."""


class RateLimitedError(LoadError):
    """The principal makes more requests than it may."""


class ShuttingDownError(LoadError):
    """The server is leaving and takes nothing new."""


class StoreUnavailableError(LoadError):
    """The store cannot do it now."""


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
