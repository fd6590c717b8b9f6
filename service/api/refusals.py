"""Makes the response to a request of a stream that was refused or has failed."""

from __future__ import annotations

from carousel.v1 import inference_pb2 as pb
from service.api.status import MAX_MESSAGE_LENGTH, to_message
from service.errors import QUOTED_LENGTH, CarouselError, shortened
from service.sessions.session import Session


def refused(
    request_id: int,
    session_id: str,
    session: Session | None,
    error: CarouselError,
    max_bytes: int,
    *,
    position: int | None = None,
    call_id: str = "",
) -> pb.StreamResponse:
    """Returns the response to a request that was refused or has failed.

    session: what the request is about, if it is known; position: of the session when the request failed, None for its
    present one; call_id: see `to_message`. The texts are shortened until the error has at most `max_bytes` bytes.
    """
    message, length = to_message(error, call_id=call_id), MAX_MESSAGE_LENGTH
    while length and message.ByteSize() > max_bytes:
        length //= 2
        message = to_message(error, length, call_id=call_id)
    return pb.StreamResponse(
        request_id=request_id,
        session_id=shortened(session_id, QUOTED_LENGTH),
        position=0 if session is None or session.persistence.is_unconfirmed else session.reportable(position),
        error=message,
    )
