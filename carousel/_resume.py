"""The requests by which a session is found and restored on a new stream. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import grpc

from carousel import _answers
from carousel._backoff import is_leaving
from carousel._exchange import Exchange
from carousel.errors import UnavailableError
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb
from carousel.values import CloseReason

Number: TypeAlias = Callable[[pb.StreamRequest], pb.StreamRequest]
"""Gives a request its number and its session's id."""

_TRANSIENT = ("SESSION_MOVED", "STORE_UNAVAILABLE", "SHUTTING_DOWN")
_LOST_WITH_SERVER = ("lost", "shutdown")


def find(number: Number, opening: pb.Open | None) -> Exchange[pb.StreamResponse]:
    """Resumes a session. Returns the answer.

    opening: opens it again when its server ended before it was ever stored; None where the session cannot be replayed
    from its start. Raises the error that the server refuses with.
    """
    response = yield from _ask(number(pb.StreamRequest(open=pb.Open(resume=pb.Resume()))))
    if not response.HasField("error"):
        return response
    _check_transient(response.error)
    is_lost = (
        response.error.code == grpc.StatusCode.NOT_FOUND.value[0]
        and response.error.metadata.get("close_reason", "lost") in _LOST_WITH_SERVER
    )
    if not is_lost or opening is None:
        raise _answers.error(response.error)
    return (yield from _checked(number(pb.StreamRequest(open=opening))))


def replay(number: Number, feed: pb.Feed) -> Exchange[pb.StreamResponse]:
    """Feeds a restored session what it had consumed before. Returns the answer. Raises what refuses it."""
    return (yield from _checked(number(pb.StreamRequest(feed=feed))))


def is_transient(error: error_pb2.Error) -> bool:
    """Whether the session is to be looked for again, or the request to be sent again later."""
    return error.reason in _TRANSIENT or error.metadata.get("close_reason") == CloseReason.MOVED


def _checked(request: pb.StreamRequest) -> Exchange[pb.StreamResponse]:
    response = yield from _ask(request)
    if response.HasField("error"):
        _check_transient(response.error)
        raise _answers.error(response.error)
    return response


def _check_transient(error: error_pb2.Error) -> None:
    """Raises UnavailableError for an error that another attempt may not meet."""
    is_gone = error.code == grpc.StatusCode.NOT_FOUND.value[0]  # and its metadata says how, not what to do
    if is_transient(error) or (is_leaving(_answers.error(error)) and not is_gone):
        raise UnavailableError(error.message, reason=error.reason)


def _ask(request: pb.StreamRequest) -> Exchange[pb.StreamResponse]:
    response = yield request
    while response.request_id != request.request_id:
        kind = response.WhichOneof("response")
        if kind == "go_away" or (kind == "closed" and response.closed.reason == pb.CLOSE_REASON_MOVED):
            raise UnavailableError("the server is shutting down, or another one has the session", reason="GO_AWAY")
        response = yield None
    return response
