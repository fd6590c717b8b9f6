"""Calls of one request and one response, over asyncio gRPC."""

from __future__ import annotations

import asyncio
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


async def unary(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    timeout: float | None,  # noqa: ASYNC109  # gRPC's own, which it sends to the server
    metadata: Metadata = (),
) -> Response:
    """Runs a call. Raises a CarouselError when it fails."""
    try:
        return await method(request, timeout=_arguments.timeout(timeout), metadata=metadata)
    except grpc.RpcError as error:
        raise _answers.rpc_error(error) from error
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        raise _answers.client_closed() from None


def is_cancelled() -> bool:
    """Whether this task was cancelled. If not, the client was closed, and that cancelled the call."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def retried(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    deadline: Deadline,
    resume_timeout: float,
    metadata: Metadata = (),
) -> Response:
    """Runs a call that is safe to repeat. Retries it when the connection is lost or the server shuts down."""
    backoff = CallBackoff(resume_timeout)
    while True:
        try:
            return await unary(method, request, deadline.remaining(), metadata)
        except CarouselError as error:
            delay_s = backoff.next(error, 0, time.monotonic(), deadline.remaining())
        await asyncio.sleep(delay_s)
