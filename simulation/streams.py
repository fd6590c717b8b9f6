"""A client's side of one `Inference.Stream` call: sends requests, receives answers, and checks that each request is
answered exactly once.

It knows what every client may rely on, and nothing about sessions. Rules that it checks:

1. Each request receives one answer; a generation receives any number of parts and one end.
2. The stream ends only when the client has half-closed and every request is answered, or with an error, or because the
   server or the client has disconnected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol
from zlib import crc32

import grpc

from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb
from simulation.checks import Journal, Stamp
from simulation.knobs import Tenant
from simulation.system import Replica
from simulation.wire import Connection, ConnectionAtOnce

_ASK_S = 60.0
"""Virtual seconds after which a request that is waited for counts as unanswered."""


class Sent:
    """One request. responses: received so far; is_done: whether the last response was received; is_lost: whether the
    stream ended before."""

    def __init__(self, stream: ClientStream, request: pb.StreamRequest) -> None:
        self.stream = stream
        self.request = request
        self.kind = request.WhichOneof("request") or "none"
        self.responses: list[pb.StreamResponse] = []
        self.stamp: Stamp = {}
        self.is_done = False
        self.is_lost = False
        self.ended_at_s = float("inf")
        self.sent_at_s = asyncio.get_running_loop().time()
        self.subject: Any = None
        """The client's data about the request."""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def replica(self) -> Replica:
        """The replica to which it was sent."""
        return self.stream.replica

    @property
    def answer(self) -> pb.StreamResponse:
        """The last response."""
        return self.responses[-1]

    def __str__(self) -> str:
        return f"{self.stream.name}#{self.request.request_id} {self.kind} {self.request.session_id!r}"

    def end(self) -> None:
        """Notes that it receives no more responses."""
        self.ended_at_s = asyncio.get_running_loop().time()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, timeout_s: float) -> bool:
        """Waits until it is answered or lost. Returns False after `timeout_s` virtual seconds."""
        if self.is_done or self.is_lost:
            return True
        self._waiter = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait([self._waiter], timeout=timeout_s)
        return bool(done)


class Listener(Protocol):
    """Receives the events of a stream."""

    def answered(self, sent: Sent) -> None:
        """Called when a request has received its last response."""

    def progressed(self, sent: Sent, response: pb.StreamResponse, stamp: Stamp) -> None:
        """Called when a generation has received a part and continues."""

    def noticed(self, stream: ClientStream, response: pb.StreamResponse) -> None:
        """Called when the server sends a message that is not a response."""

    def ended(self, stream: ClientStream, unanswered: list[Sent]) -> None:
        """Called when the stream has ended."""


class ClientStream:
    """One call. Its name determines which of the two kinds of connection it uses. stamp: returns the stored records of
    the sessions in a response, when the server writes this response."""

    def __init__(
        self,
        name: str,
        replica: Replica,
        journal: Journal,
        delay: Callable[[], float],
        *,
        listener: Listener | None = None,
        stamp: Callable[[pb.StreamResponse], Stamp] = lambda response: {},
        caller: Tenant | None = None,
    ) -> None:
        self.name = name
        self.replica = replica
        self.notices: list[pb.StreamResponse] = []
        self.sent: dict[int, Sent] = {}
        self.has_left = self.has_half_closed = self.is_over = self.is_leaving = False
        self.error: error_pb2.Error | None = None
        self._journal = journal
        self._delay = delay
        self._listener = listener
        self._stamp = stamp
        self._stamps: dict[int, Stamp] = {}
        self._life = replica.life
        wire = ConnectionAtOnce if crc32(name.encode()) % 2 else Connection
        self._connection = wire(self._receive, delay, self.written)
        self._over = asyncio.get_running_loop().create_future()
        self._task = replica.stream(self._connection, caller)
        self._task.add_done_callback(self._served)

    @property
    def unanswered(self) -> list[Sent]:
        """Requests without a last response."""
        return [one for one in self.sent.values() if not (one.is_done or one.is_lost)]

    def send(self, session_id: str = "", **request: Any) -> Sent:
        """Sends one request."""
        message = pb.StreamRequest(request_id=len(self.sent) + 1, session_id=session_id, **request)
        sent = self.sent[message.request_id] = Sent(self, message)
        if self.is_over or self.has_left or self.has_half_closed:
            sent.is_lost = True
        else:
            self._journal.note(f"{self.name} > {_short(message)}")
            self._connection.send(message)
        return sent

    async def ask(self, session_id: str = "", **request: Any) -> pb.StreamResponse:
        """Sends one request and returns its last response. Reports a violation if there is none."""
        sent = self.send(session_id, **request)
        if not await sent.wait(_ASK_S):
            self._journal.violate(f"{sent} was not answered in {_ASK_S:g} s")
        return sent.answer if sent.responses else pb.StreamResponse(error=error_pb2.Error(reason="NO_ANSWER"))

    def half_close(self) -> None:
        """Half-closes the stream: sends no more requests."""
        if not self.has_half_closed:
            self._journal.note(f"{self.name} > half-close")
            self.has_half_closed = True
            self._connection.send(grpc.aio.EOF)

    def leave(self) -> None:
        """Disconnects."""
        if self.has_left or self.is_over:
            return
        self._journal.note(f"{self.name} leaves")
        self.has_left = True
        self._connection.leave()
        asyncio.get_running_loop().call_later(self._delay(), self._task.cancel)
        self._end()

    def set_reading(self, is_reading: bool) -> None:
        """Stops or continues reading."""
        self._connection.set_reading(is_reading)

    async def wait_over(self, timeout_s: float) -> bool:
        """Waits for the end of the stream. Returns whether it has ended."""
        if not self.is_over:
            await asyncio.wait([self._over], timeout=timeout_s)
        return self.is_over

    def written(self, response: pb.StreamResponse) -> None:
        """Called when the servicer has written a response, which arrives later: records what the store has now."""
        self._stamps[id(response)] = self._stamp(response)

    def _served(self, task: asyncio.Task[error_pb2.Error | None]) -> None:
        """Called when the servicer has ended the call. Responses that are on their way arrive first."""
        error = None
        if task.cancelled() or self.replica.life.is_over:
            error = error_pb2.Error(reason="LOST", message="the connection was lost")
        else:
            error = task.result()
        self._connection.finish(error or error_pb2.Error())

    def _receive(self, response: pb.StreamResponse | error_pb2.Error) -> None:
        if isinstance(response, error_pb2.Error):
            if self._stamps and self._life.is_over:  # responses on their way were lost with the process
                response = error_pb2.Error(reason="LOST", message="the connection was lost")
            self.error = response if response.reason else None
            self._end()
            return
        stamp = self._stamps.pop(id(response), {})
        self._journal.look()
        self._journal.note(f"{self.name} < {_short(response)}")
        if response.request_id == 0:
            self.notices.append(response)
            self.is_leaving = self.is_leaving or response.HasField("go_away")
            if self._listener is not None:
                self._listener.noticed(self, response)
            return
        sent = self.sent.get(response.request_id)
        if sent is None:
            self._journal.violate(f"{self.name}: an answer to request {response.request_id}, which was never sent")
            return
        if sent.is_done:
            self._journal.violate(f"{sent} is answered again, after its last answer: {_short(response)}")
            return
        sent.responses.append(response)
        sent.stamp = stamp
        if response.HasField("generated") and not response.generated.finish_reason:
            if self._listener is not None:
                self._listener.progressed(sent, response, stamp)
            return
        sent.is_done = True
        sent.end()
        if self._listener is not None:
            self._listener.answered(sent)

    def _end(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        unanswered = self.unanswered
        how = "left" if self.has_left else ("ok" if self.error is None else self.error.reason)
        self._journal.note(f"{self.name} is over: {how}, {len(unanswered)} unanswered")
        if how == "ok" and unanswered:
            self._journal.violate(f"{unanswered[0]}: its stream ended without an answer and without an error")
        elif how == "ok" and not (self.has_half_closed or self.is_leaving):
            self._journal.violate(f"{self.name}: the server ended the stream without a reason")
        for sent in unanswered:
            sent.is_lost = True
            sent.end()
        self._over.set_result(None)
        if self._listener is not None:
            self._listener.ended(self, unanswered)


def _short(message: Any) -> str:
    text = " ".join(str(message).split())
    return text if len(text) < 240 else text[:240] + "..."  # at most one line of a trace
