"""Repeats a call when the connection is lost."""

from __future__ import annotations

import asyncio
import time
from typing import TypeVar

import grpc

from carousel._async_call import unary
from carousel._backoff import CallBackoff
from carousel._channel import Metadata
from carousel._deadline import Deadline
from carousel.errors import CarouselError

Request = TypeVar("Request")
Response = TypeVar("Response")


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
