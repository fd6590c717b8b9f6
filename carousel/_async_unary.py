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
    timeout: float | None,  # noqa: ASYNC109  # gRPC's own, which the server hears of
    metadata: Metadata = (),
) -> Response:
    """Raises the error that the call fails with."""
    try:
        return await method(request, timeout=_arguments.timeout(timeout), metadata=metadata)
    except grpc.RpcError as error:
        raise _answers.rpc_error(error) from error
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        raise _answers.client_closed() from None


def is_cancelled() -> bool:
    """Whether it is this task that was cancelled, and not the call, by the client's closing."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def retried(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    deadline: Deadline,
    resume_timeout: float,
    metadata: Metadata = (),
) -> Response:
    """Makes a call that is safe to repeat, again when its connection is lost or its server shuts down."""
    backoff = CallBackoff(resume_timeout)
    while True:
        try:
            return await unary(method, request, deadline.remaining(), metadata)
        except CarouselError as error:
            delay_s = backoff.next(error, 0, time.monotonic(), deadline.remaining())
        await asyncio.sleep(delay_s)
