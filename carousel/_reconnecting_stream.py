"""A session's or batch's connection for blocking callers: whose turn it is, and how a thread cancels another's call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from carousel._deadline import Deadline
from carousel._exchange import Exchange
from carousel._exchange_runner import ExchangeRunner, Owner
from carousel._home import check_client
from carousel._protocol import SessionProtocol
from carousel._turn import Turn
from carousel.v1 import inference_pb2_grpc

T = TypeVar("T")


class ReconnectingStream(ExchangeRunner[Owner]):
    """One thread at a time may use it: a second thread gets ConcurrentUseError."""

    def __init__(self, stub: inference_pb2_grpc.InferenceStub, protocol: Owner, name: str = "session") -> None:
        """name: what the stream carries, for errors."""
        super().__init__(stub, protocol, name)
        self._turn = Turn(name)

    def run(self, exchange: Exchange[T], deadline: Deadline, *, is_closing: bool = False) -> T:
        """Runs an exchange and returns its result. Uses another stream when one is lost.

        is_closing: attempt to resume a lost session only once. Raises what the exchange raises; DeadlineExceededError
        when the deadline passes, after which the exchange is dropped; UnavailableError or a similar error when the
        session was not resumed in the recovery's time; and the error that ended the session for good.
        """
        with self._turn.within(deadline):
            if not is_closing:
                check_client(self._stub)
            return self._run(exchange, deadline, is_closing)

    def cancel(self: ReconnectingStream[SessionProtocol], deadline: Deadline) -> int:
        """Cancels what is in flight, including another thread's call, which then raises RequestCancelledError. Returns
        the session's position. While another thread resumes a lost session, it waits until that has ended.

        Raises what `run` raises.
        """
        with self._turn.cancelling(deadline):
            check_client(self._stub)
            self._stream.wake()  # a thread that resumes the session checks `is_awaited` afterwards
            with self._turn.after_others(deadline):
                self._run(self._protocol.synchronize(), deadline)
                return self._protocol.position

    def rewind(
        self: ReconnectingStream[SessionProtocol], position: int, rewind: Callable[[], object], deadline: Deadline
    ) -> None:
        """Rewinds the session, after cancelling what is in flight. rewind: the call that asks the server for it.

        Raises what `rewind` raises, unless the connection was lost meanwhile. In that case the session is resumed, its
        marks are set again, and `rewind` is called again.
        """
        with self._turn.within(deadline):
            check_client(self._stub)
            self._rewind(position, rewind, deadline)

    def end(self, deadline: Deadline) -> None:
        """See `Stream.end`."""
        self._stream.end(deadline)

    def _interrupt(self) -> None:
        """Cancels what the running exchange waits for, if another thread waits in `cancel`."""
        request = self._protocol.interrupt() if self._turn.is_awaited else None
        if request is not None:
            self.post(request)
