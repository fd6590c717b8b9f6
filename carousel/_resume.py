"""The exchanges that find and restore sessions on a new stream. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, TypeAlias

import grpc

from carousel import _answers
from carousel._backoff import is_shutdown_or_move
from carousel._exchange import Exchange
from carousel.errors import CarouselError, UnavailableError
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb
from carousel.values import CloseReason

Number: TypeAlias = Callable[[pb.StreamRequest], pb.StreamRequest]
"""Gives a request its number and its session's id."""

Post: TypeAlias = Callable[[pb.StreamRequest], None]
"""Sends a request and does not wait for its answer."""


class Heard(Protocol):
    """Is called with each response."""

    def __call__(self, response: pb.StreamResponse, *, is_asked: bool) -> None:
        """is_asked: whether an exchange waits for it."""


_TRANSIENT = ("SESSION_MOVED", "STORE_UNAVAILABLE", "SHUTTING_DOWN")
_LOST_WITH_SERVER = ("lost", "shutdown")


def find(number: Number, opening: pb.Open | None) -> Exchange[pb.StreamResponse]:
    """Resumes a session. Returns the answer.

    opening: opens the session again if its server ended before the session was ever stored; None if the client cannot
    replay the session from its start. Raises the error with which the server refuses.
    """
    response = yield from _ask(number(pb.StreamRequest(open=pb.Open(resume=pb.Resume()))))
    if not response.HasField("error"):
        return response
    _check_transient(response.error)
    # without a reason the server has no record of the session: its server was killed before it stored the session
    is_lost = (
        response.error.code == grpc.StatusCode.NOT_FOUND.value[0]
        and response.error.metadata.get("close_reason", "lost") in _LOST_WITH_SERVER
    )
    if not is_lost or opening is None:
        raise _answers.error(response.error)
    return (yield from _checked(number(pb.StreamRequest(open=opening))))


def replay(number: Number, feed: pb.Feed) -> Exchange[pb.StreamResponse]:
    """Feeds a restored session what it had consumed before. Returns the answer. Raises the server's refusal."""
    return (yield from _checked(number(pb.StreamRequest(feed=feed))))


def history_lost(message: str) -> CarouselError:
    """The error for a session that cannot be replayed. message: the reason."""
    return CarouselError(f"{message} Open a new session", code=grpc.StatusCode.DATA_LOSS, reason="HISTORY_LOST")


def behind_checkpoint(position: int, checkpoint: int | None) -> error_pb2.Error:
    """The error for the requests of a session whose position is behind its checkpoint."""
    return error_pb2.Error(
        code=grpc.StatusCode.FAILED_PRECONDITION.value[0],
        message=f"the session is at position {position}, behind its checkpoint at {checkpoint}: another caller rewound"
        f" it, or the store lost a write. Feed it from position {position}, or open a new session",
        reason="POSITION_MISMATCH",
        metadata={"position": str(position)},
    )


def together(post: Post, exchanges: Mapping[str, Exchange[object]], heard: Heard) -> Exchange[dict[str, object]]:
    """Runs exchanges of many sessions at the same time, each with its session's responses. post: sends a request.

    Returns the result or the error of each session. Raises UnavailableError when the server shuts down.
    """
    results: dict[str, object] = {}

    def advance(name: str, step: Callable[[], pb.StreamRequest | None]) -> None:
        try:
            request = step()
            if request is not None:
                post(request)
        except StopIteration as end:
            results[name] = end.value
        except CarouselError as error:
            results[name] = error

    for name, exchange in exchanges.items():
        advance(name, partial(next, exchange))
    while len(results) < len(exchanges):
        response = yield None
        if response.HasField("go_away"):
            raise _go_away()
        name = response.session_id
        is_asked = name in exchanges and name not in results
        heard(response, is_asked=is_asked)
        if is_asked:
            advance(name, partial(exchanges[name].send, response))
    return results


def is_transient(error: error_pb2.Error) -> bool:
    """Whether the session must be looked for again, or the request sent again later."""
    return error.reason in _TRANSIENT or error.metadata.get("close_reason") == CloseReason.MOVED


def _checked(request: pb.StreamRequest) -> Exchange[pb.StreamResponse]:
    response = yield from _ask(request)
    if response.HasField("error"):
        _check_transient(response.error)
        raise _answers.error(response.error)
    return response


def _check_transient(error: error_pb2.Error) -> None:
    """Raises UnavailableError for an error that may not occur in another attempt."""
    is_gone = error.code == grpc.StatusCode.NOT_FOUND.value[0]  # its close reason says how the session ended
    if is_transient(error) or (is_shutdown_or_move(_answers.error(error)) and not is_gone):
        raise UnavailableError(error.message, reason=error.reason)


def _ask(request: pb.StreamRequest) -> Exchange[pb.StreamResponse]:
    response = yield request
    while response.request_id != request.request_id:
        kind = response.WhichOneof("response")
        if kind == "go_away" or (kind == "closed" and response.closed.reason == pb.CLOSE_REASON_MOVED):
            raise _go_away()
        response = yield None
    return response


def _go_away() -> UnavailableError:
    return UnavailableError("the server is shutting down, or another server has the session", reason="GO_AWAY")
