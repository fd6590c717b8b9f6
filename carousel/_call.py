"""One gRPC call for blocking callers, with a CarouselError when it fails. `_async_call` has the same for asyncio."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Generic, TypeVar

import grpc

from carousel import _answers, _arguments
from carousel._channel import Metadata
from carousel._exit import close_at_exit, stay_at_exit

Request = TypeVar("Request")
Response = TypeVar("Response")
T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
        stay_at_exit()
        raise _answers.rpc_error(error) from error


def started(start: Callable[[], T]) -> T:
    """Returns what `start` returns: a call of gRPC. The program's handlers of `_SIGNALS` run after it.

    A handler that raises, as Ctrl-C does, while gRPC starts a call would leave a call that nothing reads, and
    `Channel.close` would wait for its end forever.
    """
    if threading.current_thread() is not threading.main_thread():
        return start()  # Python runs handlers in the main thread alone
    arrived: list[Callable[[], object]] = []

    def later(handler: Callable[..., object], number: int, frame: object) -> None:
        arrived.append(partial(handler, number, frame))

    with ExitStack() as restored:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                restored.callback(signal.signal, number, handler)
                signal.signal(number, partial(later, handler))
        result = start()
    for handle in arrived:
        handle()
    return result


class Responses(Generic[Response]):
    """The responses of one call that has started."""

    def __init__(self, start: Callable[[], Any]) -> None:
        """start: starts a call of a `grpc.UnaryStreamMultiCallable`."""
        self._call: Any = started(start)
        self._responses: Iterator[Response] = iter(self._call)
        close_at_exit(self)

    def next(self) -> Response | None:
        """Waits for the next response. Returns None at the end. Raises a CarouselError when the call failed."""
        try:
            return next(self._responses, None)
        except grpc.RpcError as error:
            failure = _answers.rpc_error(error)
            error.__traceback__ = None  # it has a reference to the call, and the failure may outlive this object
        stay_at_exit()
        raise failure

    def cancel(self) -> None:
        """Ends the call. Any thread may call it."""
        if self._call is not None:
            self._call.cancel()

    def close(self) -> None:
        """See `close_at_exit`."""
        self.cancel()
        self._call, self._responses = None, iter(())
