"""One gRPC call for asyncio, with a CarouselError when it fails. `_call` has the same for blocking callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import grpc

from carousel import _answers, _arguments
from carousel._channel import Metadata

Request = TypeVar("Request")
Response = TypeVar("Response")


async def unary(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    timeout: float | None,  # noqa: ASYNC109  # gRPC's own, which it sends to the server
    metadata: Metadata = (),
) -> Response:
    """Runs a call that has one response. Raises a CarouselError when it fails."""
    try:
        return await method(request, timeout=_arguments.timeout(timeout), metadata=metadata)
    except grpc.RpcError as error:
        raise _answers.rpc_error(error) from error
    except asyncio.CancelledError:
        if _is_cancelled():
            raise
        raise _answers.client_closed() from None


class AsyncResponses(Generic[Response]):
    """The responses of one call that has started."""

    def __init__(self, start: Callable[[], grpc.aio.UnaryStreamCall[Any, Response]]) -> None:
        """start: starts the call."""
        self._call = start()
        self._responses = aiter(self._call)

    async def next(self) -> Response | None:
        """Waits for the next response. Returns None at the end. Raises a CarouselError when the call failed."""
        try:
            return await anext(self._responses, None)
        except grpc.RpcError as error:
            raise _answers.rpc_error(error) from error
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise _answers.client_closed() from None

    def cancel(self) -> None:
        """Ends the call."""
        self._call.cancel()


def _is_cancelled() -> bool:
    """Whether this task was cancelled. If not, the client was closed, and that cancelled the call."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
