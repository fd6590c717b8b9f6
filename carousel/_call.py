"""One gRPC call for blocking callers, with a CarouselError when it fails. `_async_call` has the same for asyncio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import grpc

from carousel import _answers, _arguments
from carousel._channel import Metadata
from carousel._exit import free_at_exit

Request = TypeVar("Request")
Response = TypeVar("Response")


def unary(
    method: grpc.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    timeout: float | None,
    metadata: Metadata = (),
) -> Response:
    """Runs a call that has one response. Raises a CarouselError when it fails."""
    try:
        return method(request, timeout=_arguments.timeout(timeout), metadata=metadata)
    except grpc.RpcError as error:
        raise _answers.rpc_error(error) from error


class Responses(Generic[Response]):
    """The responses of one call that has started."""

    def __init__(self, call: Any) -> None:
        """call: of a `grpc.UnaryStreamMultiCallable`."""
        self._call = call
        self._responses: Iterator[Response] = iter(call)
        free_at_exit(self)

    def next(self) -> Response | None:
        """Waits for the next response. Returns None at the end. Raises a CarouselError when the call failed."""
        try:
            return next(self._responses, None)
        except grpc.RpcError as error:
            failure = _answers.rpc_error(error)
            error.__traceback__ = None  # it has a reference to the call, and the failure may outlive this object
        raise failure

    def cancel(self) -> None:
        """Ends the call. Any thread may call it."""
        if self._call is not None:
            self._call.cancel()

    def free(self) -> None:
        """See `free_at_exit`."""
        self.cancel()
        self._call, self._responses = None, iter(())
