"""A session's stream over asyncio gRPC: carries conversations out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, TypeVar

import grpc

from carousel import _answers
from carousel._channel import session_metadata
from carousel._conversation import Conversation
from carousel._deadline import Deadline
from carousel._protocol import StreamOwner
from carousel.errors import CarouselError, InternalError, RequestCancelledError, UnavailableError
from carousel.v1.inference_pb2 import StreamRequest, StreamResponse

if TYPE_CHECKING:
    from carousel.v1.inference_pb2_grpc import InferenceAsyncStub  # exists for type checkers alone

T = TypeVar("T")


class AsyncStream:
    """One gRPC stream. Concurrent conversations take turns.

    gRPC breaks the stream off when a task is cancelled that reads from it or writes to it, so two tasks stand between,
    which no caller's cancellation reaches: gRPC's takes requests from the outbox, ours puts responses into the inbox.
    When the stream ends, however it ends, ours puts the error there as the last item, releases gRPC's, and both end.
    """

    def __init__(self, stub: InferenceAsyncStub, owner: StreamOwner) -> None:
        self._owner = owner
        self._outbox: asyncio.Queue[StreamRequest | None] = asyncio.Queue()
        self._inbox: asyncio.Queue[StreamResponse | CarouselError] = asyncio.Queue()
        self._turn = asyncio.Lock()
        self._call = stub.Stream(self._requests(), metadata=session_metadata(owner.id))
        self._reader = asyncio.create_task(self._read(), name="carousel-stream")

    async def run(self, conversation: Conversation[T], deadline: Deadline) -> T:
        """Carries a conversation out and returns its result.

        Raises what the conversation raises; DeadlineExceededError when the deadline passes, dropping it; and what
        ended the stream. Cancellation drops it too.
        """
        try:
            async with asyncio.timeout(deadline.remaining()), self._turn:
                request = next(conversation)
                while True:
                    if request is not None:
                        self._outbox.put_nowait(request)
                    received = await self.receive()
                    if isinstance(received, CarouselError):
                        raise self._owner.lost(received)
                    request = conversation.send(received)
        except StopIteration as end:
            result: T = end.value
            return result
        except TimeoutError:
            raise deadline.exceeded() from None

    def post(self, request: StreamRequest) -> None:
        """Sends a request whose answer another conversation waits for."""
        self._outbox.put_nowait(request)

    async def receive(self) -> StreamResponse | CarouselError:
        """The next response, or once what ended the stream."""
        return await self._inbox.get()

    async def end(self, deadline: Deadline) -> None:
        """Tells the server that nothing more will be sent, and waits for it to end the stream; then breaks it off."""
        self._outbox.put_nowait(None)
        try:
            await asyncio.wait((self._reader,), timeout=deadline.remaining())
        finally:
            self._call.cancel()
            await asyncio.wait((self._reader,))

    async def _requests(self) -> AsyncIterator[StreamRequest]:
        while (request := await self._outbox.get()) is not None:
            yield request

    async def _read(self) -> None:
        end: CarouselError = InternalError("the stream could not be read")
        try:
            async for response in self._call:
                self._inbox.put_nowait(response)
            end = UnavailableError("the server ended the session's stream")
        except grpc.RpcError as error:
            end = _answers.rpc_error(error)
        except asyncio.CancelledError:
            end = RequestCancelledError("the client was closed")
            raise
        finally:
            self._outbox.put_nowait(None)
            self._inbox.put_nowait(end)
