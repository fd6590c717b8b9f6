"""Calls of one request and one response, over blocking gRPC."""

from __future__ import annotations

import time
from typing import TypeVar

import grpc

from carousel import _answers, _arguments
from carousel._backoff import CallBackoff
from carousel._channel import Metadata
from carousel._deadline import Deadline
from carousel.errors import CarouselError

Request = TypeVar("Request")
Response = TypeVar("Response")


def unary(
    method: grpc.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    timeout: float | None,
    metadata: Metadata = (),
) -> Response:
    """Runs a call. Raises a CarouselError when it fails."""
    try:
        return method(request, timeout=_arguments.timeout(timeout), metadata=metadata)
    except grpc.RpcError as error:
        raise _answers.rpc_error(error) from error


def retried(
    method: grpc.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    deadline: Deadline,
    resume_timeout: float,
    metadata: Metadata = (),
) -> Response:
    """Runs a call that is safe to repeat. Retries it when the connection is lost or the server shuts down."""
    backoff = CallBackoff(resume_timeout)
    while True:
        try:
            return unary(method, request, deadline.remaining(), metadata)
        except CarouselError as error:
            time.sleep(backoff.next(error, 0, time.monotonic(), deadline.remaining()))
