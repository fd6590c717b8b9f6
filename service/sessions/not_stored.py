"""What a client gets when the store failed: the error for an opening, the error for an answer, the position to continue
from. `unstored` keeps the answers themselves.
"""

from __future__ import annotations

from service.errors import CarouselError, StoreUnavailableError
from service.sessions.session import Session


def opening_not_stored(session: Session, error: CarouselError) -> CarouselError:
    """Returns the error for an opening that waited for the store when the store failed."""
    if not isinstance(error, StoreUnavailableError):
        return error
    return StoreUnavailableError(
        f"session {session.name!r} could not be stored, and is not open: send the request again",
        retry_delay_s=1.0,
        session_id=session.name,
    )


def position_for_client(session: Session, position: int, error: CarouselError | None) -> int:
    """Returns the position to report to the client that continues with a session, after the answers that waited for the
    store are answered. position: the session's own position. error: the store's error, or None.

    - Without an error: `position`. A strict session has stored it by then.
    - When the store fails: the stored position of a strict session; the present position of any other.

    Raises `error` when the session is unconfirmed, or when it is no StoreUnavailableError. Raises StoreUnavailableError
    for a session that was rewound without being stored: its client would continue from another state than the reported
    one.
    """
    if error is None:
        return position
    if session.persistence.is_unconfirmed or not isinstance(error, StoreUnavailableError):
        raise error
    if session.persistence.is_set_back:
        raise StoreUnavailableError(
            f"session {session.name!r} was rewound, or its state was replaced, but the store failed to save the"
            " change: send the request again",
            retry_delay_s=1.0,
            session_id=session.name,
        )
    return session.reportable_position


def answer_not_stored(session: Session) -> StoreUnavailableError:
    """Returns the error for answers that wait for the store when the store fails."""
    return StoreUnavailableError(
        f"session {session.name!r} is at position {session.position}, but the store failed to save it: send the"
        " request again unchanged, with its position, then all other requests that failed with this error, in order;"
        " none of them is applied twice",
        retry_delay_s=1.0,
        session_id=session.name,
        position=session.position,
        stored_position=session.reportable_position,
    )
