"""Calls of one request and one response, over blocking gRPC."""

from __future__ import annotations

from typing import TypeVar

import grpc

from carousel import _answers
from carousel._channel import Metadata

Request = TypeVar("Request")
Response = TypeVar("Response")


def unary(
    method: grpc.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    timeout: float | None,
    metadata: Metadata = (),
) -> Response:
    """Raises the error that the call fails with."""
    try:
        return method(request, timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        raise _answers.rpc_error(error) from error
