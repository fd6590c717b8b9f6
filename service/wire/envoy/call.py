"""One gRPC call over ASGI: what a handler reads, writes and ends it with.

Has the methods of `grpc.aio.ServicerContext` that handlers use, and behaves as it does: `read` gives messages and then
`grpc.aio.EOF`; `write` raises `grpc.aio.InternalError` once the client has left; a client that leaves cancels the
handler's task; so does a deadline that has passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NoReturn

import grpc

from service.wire.codec import Codec
from service.wire.envoy.frames import ENCODINGS, FrameError, Frames, framed
from service.wire.envoy.headers import Metadata, certificate_of, checked, encoded, status_headers
from service.wire.json_messages import JsonError

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

_UNSENT_BYTES = 16 * 1024
"""Of responses that Envoy has not taken yet, beyond which a handler waits."""
_SLOW_BYTES = 16 * 1024
"""Of a message that is slow to parse or to write, beyond which others would have to wait."""
_RESENT = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED})
"""Envoy's bridge makes HTTP status 408 of these, and browsers send a POST that got 408 again by themselves."""


async def send_whole(
    send: Send, status: int, content_type: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> None:
    """Sends an answer of HTTP without trailers, as a whole."""
    start = [(b"content-type", content_type), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class Call:
    """content_type: of the request, and so of the responses; peer: as gRPC names it; codec: messages to bytes and
    back; certificate: the header by which Envoy tells of the client's, None without one. Event loop only."""

    def __init__(  # noqa: PLR0917  # all that a call is made of
        self,
        receive: Receive,
        send: Send,
        codec: Codec,
        frames: Frames,
        content_type: bytes,
        metadata: Metadata,
        peer: str,
        certificate: bytes | None = None,
    ) -> None:
        self._receive = receive
        self._send = send
        self._codec = codec
        self._frames = frames
        self._content_type = content_type
        self._metadata = metadata
        self._peer = peer
        self._certificate = certificate
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self.is_whole = False
        """Whether it is one of Connect's that do not stream: a browser may send it again."""
        self.malformed = grpc.StatusCode.INTERNAL
        """How it ends when what came is no message: Connect has another code for that than gRPC."""
        self._is_last_read = False
        self._has_left = False
        self._is_started = False
        self._failure: tuple[grpc.StatusCode, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_reading = False
        self._asked: asyncio.Future[Event] | None = None
        self._sent: asyncio.Future[None] | None = None
        self._unsent: list[bytes] = []
        self._num_unsent = 0
        self._code: grpc.StatusCode | int | None = None
        self._details = ""
        self._trailers: list[tuple[str, str | bytes]] = []

    # What handlers use.

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF`. Raises DecodeError for one that is none."""
        has_more = not self._frames.is_empty
        if has_more:  # a client that sends many at once leaves others their turn between two of them
            await asyncio.sleep(0)
        while True:
            try:
                message = self._frames.next() if has_more else None
            except FrameError as error:
                code = grpc.StatusCode[error.code]
                await self._fail(self.malformed if code is grpc.StatusCode.INTERNAL else code, str(error))
            if message is not None:
                try:
                    if self._codec.is_slow and len(message) > _SLOW_BYTES:
                        return await asyncio.to_thread(self._codec.decode, message)
                    return self._codec.decode(message)
                except JsonError as error:
                    await self._fail(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            if self._is_last_read:
                if not self._frames.is_empty:
                    await self._fail(self.malformed, "the last message is incomplete")
                return grpc.aio.EOF
            asked, self._asked = self._asked, None
            self._is_reading = True
            try:
                event = await (self._receive() if asked is None else asked)
            finally:
                self._is_reading = False
            if event["type"] == "http.disconnect":
                self._leave()
                continue
            self._frames.add(event["body"])
            has_more = True
            if not event["more_body"]:
                self._is_last_read = True

    async def write(self, message: Any) -> None:
        """Sends a response. Those that are written while Envoy takes one in go together. Raises
        `grpc.aio.InternalError` once the client has left."""
        if self._codec.is_slow and message.ByteSize() > _SLOW_BYTES:
            frame = framed(await asyncio.to_thread(self._codec.encode, message))
        else:
            frame = framed(self._codec.encode(message))
        if not self._is_started:
            await self.send_initial_metadata(())
        self._check_there()
        self._put(frame)
        while self._num_unsent > _UNSENT_BYTES and self._sent is not None:
            await asyncio.wait((self._sent,))
            self._check_there()

    def write_at_once(self, message: Any) -> bool:
        """Sends a response without waiting, and returns whether it did: not the first one, nor while much is unsent or
        once the client has left, nor as JSON."""
        is_open = self._is_started and not self._has_left and self._task is not None
        if not is_open or self._num_unsent > _UNSENT_BYTES or self._codec.is_slow:
            return False
        self._put(framed(self._codec.encode(message)))
        return True

    async def send_initial_metadata(self, initial_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Sends the headers of the answer; without this they go with the first response. Raises ValueError for metadata
        that cannot travel."""
        if self._is_started:
            raise grpc.aio.UsageError("the initial metadata was sent")
        metadata = checked(initial_metadata)
        self._is_started = True
        headers = [
            (b"content-type", self._content_type),
            (b"grpc-accept-encoding", ENCODINGS.encode()),
            *encoded(metadata),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        """Ends the call with a status: raises `grpc.aio.AbortError`, which the handler lets through, or ValueError for
        metadata that cannot travel."""
        self._trailers = checked(trailing_metadata) or self._trailers
        self._code, self._details = code, details
        raise grpc.aio.AbortError

    def set_code(self, code: grpc.StatusCode) -> None:
        """The status that the call ends with when its handler returns."""
        self._code = code

    def set_details(self, details: str) -> None:
        """The message of that status."""
        self._details = details

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """The metadata that the call ends with. Raises ValueError for what cannot travel."""
        self._trailers = checked(trailing_metadata)

    def code(self) -> grpc.StatusCode | int | None:
        """The status as it was set, or as the client's fault or its deadline has set it."""
        return self._code or (self._failure[0] if self._failure else None)

    def details(self) -> str:
        """The message of that status."""
        return self._details

    def trailing_metadata(self) -> list[tuple[str, str | bytes]]:
        """The metadata that the call ends with."""
        return self._trailers

    def invocation_metadata(self) -> Metadata:
        """What the client sent."""
        return self._metadata

    def peer(self) -> str:
        """Who calls, such as `ipv4:127.0.0.1:40000`."""
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        """The client's certificate, in PEM, as `x509_pem_cert`; empty without one. Raises ValueError for a header
        that Envoy does not make."""
        return {} if self._certificate is None else {"x509_pem_cert": [certificate_of(self._certificate)]}

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline; None without one."""
        return None if self._timer is None else max(0.0, self._timer.when() - self._loop.time())

    # What the host uses.

    def set_deadline(self, timeout_s: float) -> None:
        """Cancels the handler after `timeout_s` seconds."""
        self._timer = self._loop.call_later(timeout_s, self._be_late)

    async def finish(self, *, is_cancelled: bool = False) -> None:
        """Sends what is left and the status: the one that was set, or that the handler was cancelled."""
        self._task = None  # from here on nothing is cancelled
        if self._timer is not None:
            self._timer.cancel()
        if self._has_left:
            return
        code, details = self._code or grpc.StatusCode.OK, self._details
        if is_cancelled:
            code, details = self._failure or (grpc.StatusCode.CANCELLED, "the call was cancelled")
        if isinstance(code, int):
            code = next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN)
        if self.is_whole and code in _RESENT:
            code = grpc.StatusCode.ABORTED
        trailers = status_headers(code, details, self._trailers)
        if not self._is_started:
            if code is not grpc.StatusCode.OK:  # trailers alone
                headers = [(b"grpc-accept-encoding", ENCODINGS.encode()), *trailers]
                await send_whole(self._send, 200, self._content_type, headers, b"")
                return
            await self.send_initial_metadata(())
        rest = b"".join(self._unsent)
        self._unsent.clear()  # or it would be sent again when Envoy has taken what was sent before
        await self._send({"type": "http.response.body", "body": rest, "more_body": False})
        await self._send({"type": "http.response.trailers", "headers": trailers, "more_trailers": False})

    def cancel(self) -> None:
        """Ends the handler: the server leaves."""
        if self._task is not None:
            self._task.cancel()

    def reset(self) -> None:
        """Drops what Envoy has not taken. The status that follows waits there, behind what it has, for no handler."""
        self._unsent.clear()

    def look_for_client(self) -> None:
        """Asks ahead of the handler for what the client sends: a piece of its messages, which is kept for the handler,
        or that it has left. ASGI does not tell by itself."""
        if self._task is None or self._is_reading:
            return
        asked = self._asked
        if asked is None or (self._is_last_read and asked.done()):
            asked = self._asked = asyncio.ensure_future(self._receive())
            asked.add_done_callback(self._on_asked)

    async def _fail(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """Ends the call for what the client sent: cancels the handler, whichever of its tasks reads."""
        self._failure = code, details
        self.cancel()
        await self._loop.create_future()
        raise grpc.aio.AbortError  # not reached: the task that reads is cancelled, or one of the handler's that is

    def _put(self, frame: bytes) -> None:
        if self._sent is None:
            self._flush(frame)
        else:
            self._unsent.append(frame)
            self._num_unsent += len(frame)

    def _flush(self, data: bytes) -> None:
        # Envoy takes it at once; what is awaited is its word that it has, or, beyond its limits, that the client reads.
        taking = self._send({"type": "http.response.body", "body": data, "more_body": True})
        sent = self._sent = taking if isinstance(taking, asyncio.Future) else asyncio.ensure_future(taking)
        sent.add_done_callback(self._on_sent)

    def _on_sent(self, sent: asyncio.Future[None]) -> None:
        self._sent = None
        if sent.cancelled() or sent.exception() is not None:
            self._leave()
        elif self._unsent:
            data = b"".join(self._unsent)
            self._unsent.clear()
            self._num_unsent = 0
            self._flush(data)

    def _check_there(self) -> None:
        if self._has_left:
            raise grpc.aio.InternalError("the client has left")

    def _leave(self) -> None:
        """The client is gone."""
        if not self._has_left:
            self._has_left = self._is_last_read = True
            self.cancel()

    def _be_late(self) -> None:
        self._failure = grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed"
        self.cancel()

    def _on_asked(self, asked: asyncio.Future[Event]) -> None:
        if not asked.cancelled() and asked.exception() is None and asked.result()["type"] == "http.disconnect":
            self._leave()
