"""Turns domain errors into gRPC statuses. `TABLE` is the only place that maps one to the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from carousel.v1 import error_pb2
from service import errors
from service.api.request_ids import KEY as REQUEST_ID

DOMAIN = "carousel"
METADATA_KEY = "carousel-error-bin"
MAX_MESSAGE_LENGTH = 2000
"""The most characters of an error's text."""
MAX_FACT_LENGTH = 200
"""The most characters of a field's name, and of a fact."""
_NUMBER_LENGTH = 20
"""The most characters of a 64-bit number."""
MAX_METADATA_BYTES = 8 * 1024 - 512
"""The most bytes of a failed call's status: the default limit of gRPC clients, less what the transport itself adds."""
_SHORTEST = 64
_ENTRY_BYTES = 32
"""Bytes that HTTP/2 counts for a metadata entry besides its key and its value."""


class Row(NamedTuple):
    """A gRPC status code, and the stable name of the cause."""

    code: grpc.StatusCode
    reason: str


TABLE: dict[type[errors.CarouselError], Row] = {
    errors.InvalidFieldError: Row(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    errors.TokenOutOfVocabularyError: Row(grpc.StatusCode.INVALID_ARGUMENT, "TOKEN_OUT_OF_VOCABULARY"),
    errors.UnknownTokenError: Row(grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_TOKEN"),
    errors.EmptySequenceError: Row(grpc.StatusCode.INVALID_ARGUMENT, "EMPTY_SEQUENCE"),
    errors.SequenceTooLongError: Row(grpc.StatusCode.INVALID_ARGUMENT, "SEQUENCE_TOO_LONG"),
    errors.UnauthenticatedError: Row(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    errors.ForbiddenError: Row(grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN"),
    errors.RateLimitedError: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
    errors.ModelNotFoundError: Row(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    errors.SessionNotFoundError: Row(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"),
    errors.SessionIdInUseError: Row(grpc.StatusCode.ALREADY_EXISTS, "SESSION_ID_IN_USE"),
    errors.SessionAlreadyOpenError: Row(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_ALREADY_OPEN"),
    errors.SessionNotOpenError: Row(grpc.StatusCode.FAILED_PRECONDITION, "SESSION_NOT_OPEN"),
    errors.PositionMismatchError: Row(grpc.StatusCode.FAILED_PRECONDITION, "POSITION_MISMATCH"),
    errors.IllegalRequestError: Row(grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_REQUEST"),
    errors.MarkNotFoundError: Row(grpc.StatusCode.FAILED_PRECONDITION, "MARK_NOT_FOUND"),
    errors.OutputsLostError: Row(grpc.StatusCode.OUT_OF_RANGE, "OUTPUTS_LOST"),
    errors.SnapshotError: Row(grpc.StatusCode.INVALID_ARGUMENT, "NOT_A_SNAPSHOT"),
    errors.SnapshotCorruptError: Row(grpc.StatusCode.DATA_LOSS, "SNAPSHOT_CORRUPT"),
    errors.SnapshotFormatError: Row(grpc.StatusCode.UNIMPLEMENTED, "SNAPSHOT_FORMAT"),
    errors.SnapshotKeyError: Row(grpc.StatusCode.PERMISSION_DENIED, "SNAPSHOT_KEY"),
    errors.SnapshotModelError: Row(grpc.StatusCode.FAILED_PRECONDITION, "SNAPSHOT_MODEL"),
    errors.SnapshotExpiredError: Row(grpc.StatusCode.FAILED_PRECONDITION, "SNAPSHOT_EXPIRED"),
    errors.StoreUnavailableError: Row(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),
    errors.FeedUncertainError: Row(grpc.StatusCode.ABORTED, "FEED_UNCERTAIN"),
    errors.SessionMovedError: Row(grpc.StatusCode.ABORTED, "SESSION_MOVED"),
    errors.TooManyCallsError: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS"),
    errors.TooManySessionsError: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SESSIONS"),
    errors.NoSlotError: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_SLOT"),
    errors.AnswerTooLargeError: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE"),
    errors.QueueFullError: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    errors.TooManyWatchersError: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS"),
    errors.WatcherDroppedError: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCHER_DROPPED"),
    errors.ShuttingDownError: Row(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"),
    errors.RequestCancelledError: Row(grpc.StatusCode.CANCELLED, "CANCELLED"),
    errors.ModelUnavailableError: Row(grpc.StatusCode.UNAVAILABLE, "MODEL_UNAVAILABLE"),
    errors.EngineError: Row(grpc.StatusCode.INTERNAL, "ENGINE_ERROR"),
}


def to_message(
    error: errors.CarouselError, max_length: int = MAX_MESSAGE_LENGTH, *, call_id: str = ""
) -> error_pb2.Error:
    """Returns the error as a stream sends it.

    max_length: the most characters of its text. Its field and each fact have at most MAX_FACT_LENGTH characters, or
    `max_length` if that is less, however much of a request they quote. If a number might not fit, there are no facts.
    call_id: the id of the stream's call; it is added to the facts if it fits whole.

    Raises KeyError for a class that `TABLE` lacks.
    """
    row, fact_length = TABLE[type(error)], min(max_length, MAX_FACT_LENGTH)
    facts = error.facts if max_length >= _NUMBER_LENGTH else {}
    message = error_pb2.Error(
        code=row.code.value[0],
        message=errors.shortened(error.message, max_length),
        reason=row.reason,
        field=errors.shortened(error.field, fact_length),
        metadata={name: errors.shortened(str(value), fact_length) for name, value in facts.items()},
    )
    if call_id and len(call_id) <= fact_length:
        message.metadata[REQUEST_ID] = call_id
    if error.retry_delay_s is not None:
        message.retry_delay.FromNanoseconds(round(error.retry_delay_s * 1e9))
    return message


async def abort(
    context: grpc.aio.ServicerContext[object, object], error: errors.CarouselError, request_id: str
) -> NoReturn:
    """Ends a call with the status of an error.

    The status has `google.rpc.Status` details for everyone, `carousel.v1.Error` for clients without googleapis, and the
    id of the call, among the details and as metadata. All of it together stays under MAX_METADATA_BYTES: transports
    drop a larger status, and the client would see the transport's error instead.
    """
    max_length = MAX_MESSAGE_LENGTH
    while True:
        message = to_message(error, max_length)
        status = rpc_status.to_status(_rich_status(error, message, request_id))
        packed = (METADATA_KEY, message.SerializeToString())
        metadata = (*status.trailing_metadata, packed, (REQUEST_ID, request_id))
        if _wire_size(status.details, metadata) <= MAX_METADATA_BYTES or max_length < _SHORTEST:
            await context.abort(status.code, status.details, metadata)
        max_length //= 2  # the text is sent four times, and a character takes up to 12 bytes


def _wire_size(details: str, metadata: Iterable[tuple[str, str | bytes]]) -> int:
    """Returns the bytes of a status in HTTP/2. Text other than printable ASCII is percent-encoded, and bytes are in
    Base64."""
    text = sum(1 if " " <= character <= "~" else 3 * len(character.encode()) for character in details)
    return text + sum(_ENTRY_BYTES + len(key) + 4 * len(value) // 3 + 4 for key, value in metadata)


def _rich_status(error: errors.CarouselError, message: error_pb2.Error, request_id: str) -> status_pb2.Status:
    status = status_pb2.Status(code=message.code, message=message.message)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=message.reason, domain=DOMAIN, metadata=message.metadata),
    ]
    if message.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=message.field, description=message.message, reason=message.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_delay_s is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=message.retry_delay))
    details.append(
        error_details_pb2.RequestInfo(request_id=request_id)
    )  # last: programs find the other details by their places
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
