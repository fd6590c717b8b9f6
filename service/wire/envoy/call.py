"""One gRPC call over ASGI, as its handler sees it.

It has the methods of `grpc.aio.ServicerContext` that handlers use, and behaves like it: `read` returns messages and
then `grpc.aio.EOF`; `write` raises `grpc.aio.InternalError` after the client has disconnected; a client that
disconnects, or a deadline that passes, cancels the handler's task.
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
"""Bytes of responses that Envoy has not accepted yet, above which a handler waits."""
_SLOW_BYTES = 16 * 1024
"""Bytes of a message with a slow codec, above which it is encoded or decoded in a thread so that others do not wait."""
_RESENT = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED})
"""Envoy's bridge turns these into HTTP status 408, and browsers repeat a POST by themselves after a 408."""


async def send_whole(
    send: Send, status: int, content_type: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> None:
    """Sends a complete HTTP response without trailers."""
    start = [(b"content-type", content_type), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class Call:
    """The context of one call. content_type: of the request and of the responses; peer: as gRPC names it; codec:
    encodes and decodes messages; certificate: Envoy's header with the client's certificate, or None. Event loop
    only."""

    def __init__(  # noqa: PLR0917  # these are all parts of a call
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
        """Whether it is a unary Connect call, which a browser may repeat by itself."""
        self.malformed = grpc.StatusCode.INTERNAL
        """The status for received data that is not a valid message. Connect uses another code than gRPC."""
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

    # The methods that handlers use.

    async def read(self) -> Any:
        """Returns the next message, or `grpc.aio.EOF`. Raises DecodeError if the message cannot be parsed."""
        has_more = not self._frames.is_empty
        if has_more:  # lets other tasks run between two messages of a client that sends many at once
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
                    await self._fail(self.malformed, "the request ended in the middle of a message")
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
        """Sends a response. Responses that are written while Envoy accepts an earlier one are sent together. Raises
        `grpc.aio.InternalError` after the client has disconnected."""
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
        """Sends a response without waiting, and returns whether it did. It does not for the first response, while many
        bytes are unsent, after the client has disconnected, or for JSON."""
        is_open = self._is_started and not self._has_left and self._task is not None
        if not is_open or self._num_unsent > _UNSENT_BYTES or self._codec.is_slow:
            return False
        self._put(framed(self._codec.encode(message)))
        return True

    async def send_initial_metadata(self, initial_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Sends the response headers. Without this call they are sent with the first response. Raises ValueError for
        metadata that HTTP cannot carry."""
        if self._is_started:
            raise grpc.aio.UsageError("the initial metadata was already sent")
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
        """Ends the call with a status by raising `grpc.aio.AbortError`, which the handler must not catch. Raises
        ValueError for metadata that HTTP cannot carry."""
        self._trailers = checked(trailing_metadata) or self._trailers
        self._code, self._details = code, details
        raise grpc.aio.AbortError

    def set_code(self, code: grpc.StatusCode) -> None:
        """Sets the status with which the call ends when its handler returns."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Sets the message of that status."""
        self._details = details

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Sets the metadata with which the call ends. Raises ValueError for metadata that HTTP cannot carry."""
        self._trailers = checked(trailing_metadata)

    def code(self) -> grpc.StatusCode | int | None:
        """Returns the status that was set, or the status for the client's fault or a missed deadline, or None."""
        return self._code or (self._failure[0] if self._failure else None)

    def details(self) -> str:
        """Returns the message of the status."""
        return self._details

    def trailing_metadata(self) -> list[tuple[str, str | bytes]]:
        """Returns the metadata with which the call ends."""
        return self._trailers

    def invocation_metadata(self) -> Metadata:
        """Returns the metadata that the client sent."""
        return self._metadata

    def peer(self) -> str:
        """Returns the client's address, such as `ipv4:127.0.0.1:40000`."""
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        """Returns the client's certificate, in PEM, as `x509_pem_cert`; empty without one. Raises ValueError for a
        header that Envoy does not make."""
        return {} if self._certificate is None else {"x509_pem_cert": [certificate_of(self._certificate)]}

    def time_remaining(self) -> float | None:
        """Returns the seconds until the client's deadline; None without a deadline."""
        return None if self._timer is None else max(0.0, self._timer.when() - self._loop.time())

    # The methods that the host uses.

    def set_deadline(self, timeout_s: float) -> None:
        """Cancels the handler after `timeout_s` seconds."""
        self._timer = self._loop.call_later(timeout_s, self._be_late)

    async def finish(self, *, is_cancelled: bool = False) -> None:
        """Sends the unsent responses and the status: the one that was set, or the one for a cancelled handler."""
        self._task = None  # nothing is cancelled after this
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
            if code is not grpc.StatusCode.OK:  # a response of trailers only
                headers = [(b"grpc-accept-encoding", ENCODINGS.encode()), *trailers]
                await send_whole(self._send, 200, self._content_type, headers, b"")
                return
            await self.send_initial_metadata(())
        rest = b"".join(self._unsent)
        self._unsent.clear()  # otherwise `_on_sent` would send it again
        await self._send({"type": "http.response.body", "body": rest, "more_body": False})
        await self._send({"type": "http.response.trailers", "headers": trailers, "more_trailers": False})

    def cancel(self) -> None:
        """Cancels the handler, because the server shuts down or the call cannot continue."""
        if self._task is not None:
            self._task.cancel()

    def reset(self) -> None:
        """Drops what Envoy has not accepted. The status that follows waits in Envoy, and no handler waits for it."""
        self._unsent.clear()

    def look_for_client(self) -> None:
        """Receives the client's next event before the handler asks for it, because ASGI does not report a disconnect by
        itself. A received piece of a message is kept for the handler."""
        if self._task is None or self._is_reading:
            return
        asked = self._asked
        if asked is None or (self._is_last_read and asked.done()):
            asked = self._asked = asyncio.ensure_future(self._receive())
            asked.add_done_callback(self._on_asked)

    async def _fail(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """Ends the call for the client's fault: cancels the handler, whichever of its tasks is reading."""
        self._failure = code, details
        self.cancel()
        await self._loop.create_future()
        raise grpc.aio.AbortError  # not reached: the reading task, or the handler's task that owns it, is cancelled

    def _put(self, frame: bytes) -> None:
        if self._sent is None:
            self._flush(frame)
        else:
            self._unsent.append(frame)
            self._num_unsent += len(frame)

    def _flush(self, data: bytes) -> None:
        # Envoy accepts the data at once. The await is for its confirmation, or, above its limits, until the client
        # reads.
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
        """Called when the client has disconnected."""
        if not self._has_left:
            self._has_left = self._is_last_read = True
            self.cancel()

    def _be_late(self) -> None:
        self._failure = grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed"
        self.cancel()

    def _on_asked(self, asked: asyncio.Future[Event]) -> None:
        if not asked.cancelled() and asked.exception() is None and asked.result()["type"] == "http.disconnect":
            self._leave()
