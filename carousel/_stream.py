"""One gRPC stream of a session or batch, for blocking callers. `_async_stream` has the same for asyncio."""

from __future__ import annotations

import queue
import threading
from typing import Any

import grpc

from carousel import _answers, _waiting
from carousel._call import started
from carousel._channel import session_metadata
from carousel._deadline import Deadline
from carousel._exit import close_at_exit, stay_at_exit
from carousel._home import Home
from carousel._resumable import StreamOwner
from carousel.errors import CarouselError, InternalError, UnavailableError
from carousel.v1 import inference_pb2_grpc
from carousel.v1.inference_pb2 import StreamRequest, StreamResponse


class Stream:
    """One gRPC stream. One thread at a time may use it.

    Blocking gRPC has no timeout for receiving a response and needs a thread for sending. So a stream has two daemon
    threads: gRPC's thread sends requests from the outbox, and the reader thread puts responses into the inbox. When the
    stream ends, for any reason, the reader puts the error into the inbox as the last item, stops gRPC's thread and
    ends.
    """

    def __init__(self, stub: inference_pb2_grpc.InferenceStub, owner: StreamOwner) -> None:
        self._outbox: queue.SimpleQueue[StreamRequest | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[StreamResponse | CarouselError | None] = queue.SimpleQueue()
        requests, metadata = iter(self._outbox.get, None), session_metadata(owner.id, owner.route)
        call = started(lambda: stub.Stream(requests, metadata=metadata))
        self._call: Any = call
        self._home = Home("stream")
        self._reader = threading.Thread(target=self._read, args=(call,), name="carousel-stream", daemon=True)
        self._reader.start()
        close_at_exit(self)

    def post(self, request: StreamRequest) -> None:
        """Sends a request."""
        self._outbox.put(request)

    def end(self, deadline: Deadline) -> None:
        """Ends the request side, waits for the server to end the stream, and cancels the stream at the deadline. Does
        nothing in a forked process: the stream belongs to the parent."""
        if not self._home.is_here:
            return
        self._outbox.put(None)
        _waiting.join(self._reader, deadline)
        self.close()

    def close(self) -> None:
        """See `close_at_exit`. Waits until the reader has ended."""
        call, self._call = self._call, None
        if call is not None:
            self._outbox.put(None)
            call.cancel()
            _waiting.join(self._reader, Deadline(None))

    def wake(self) -> None:
        """Makes `receive` return None once. Any thread may call it."""
        self._inbox.put(None)

    def receive(self, deadline: Deadline) -> StreamResponse | CarouselError | None:
        """Returns the next response; None after a `wake`; or, as the last item, the error that ended the stream.

        Raises DeadlineExceededError.
        """
        received = _waiting.get(self._inbox, deadline)
        if isinstance(received, CarouselError):
            stay_at_exit()
        return received

    def _read(self, call: Any) -> None:
        end: CarouselError = InternalError("the stream could not be read")
        try:
            for response in call:
                self._inbox.put(response)
            end = UnavailableError("the server ended the session's stream")
        except grpc.RpcError as error:
            end = _answers.rpc_error(error)
            error.__traceback__ = None  # it has a reference to the call, which `close` drops
        finally:
            self._outbox.put(None)
            self._inbox.put(end)
