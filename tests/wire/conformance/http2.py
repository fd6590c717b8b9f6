"""An HTTP/2 client over plain sockets that sends any frames, valid or not (RFC 9113)."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import TracebackType

from tests.wire.conformance.hpack import Decoder, Headers, encode

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
CANCEL = 8
TIMEOUT_S = 20.0
_INITIAL_WINDOW = 4
_WINDOW_BYTES = 2**30
_FIRST_WINDOW_BYTES = 2**16 - 1
_FRAME_BYTES = 2**14
"""The largest payload of a frame that a server accepts by default."""


class Type(IntEnum):
    """Frame types."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


@dataclass
class Answer:
    """What arrived on a stream.

    headers: the first header block, also if it ended the stream. reset: the code of RST_STREAM; None without one.
    is_ended: whether nothing more can arrive.
    """

    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    reset: int | None = None
    is_ended: bool = False

    @property
    def http_status(self) -> str:
        """The HTTP status."""
        return self.headers.get(":status", "")

    @property
    def status(self) -> int | None:
        """The gRPC status; None if the server sent none."""
        said = self.trailers.get("grpc-status", self.headers.get("grpc-status"))
        return None if said is None else int(said)

    @property
    def message(self) -> str:
        """The message of the gRPC status, still percent-encoded."""
        return self.trailers.get("grpc-message", self.headers.get("grpc-message", ""))

    @property
    def messages(self) -> list[bytes]:
        """The complete messages. None of them may be compressed."""
        found, at = [], 0
        while at + 5 <= len(self.data):
            assert self.data[at] == 0
            end = at + 5 + int.from_bytes(self.data[at + 1 : at + 5], "big")
            if end > len(self.data):
                break
            found.append(bytes(self.data[at + 5 : end]))
            at = end
        return found


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """Returns a frame. length: the length in its header, if it is not the payload's."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def message_frame(message: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """Returns a gRPC message with its prefix, for DATA frames. length: the length in the prefix, if it is not the
    message's."""
    return bytes([flag]) + (len(message) if length is None else length).to_bytes(4, "big") + message


def call_headers(path: str, /, *more: tuple[str, str], **changed: str | None) -> Headers:
    """Returns the headers of a call.

    more: headers after gRPC's own, in this order. changed: values of gRPC's own headers, by name with `_` for `-`; None
    omits a header.
    """
    own: dict[str, str | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    for name, value in changed.items():
        own[name.replace("_", "-") if name in ("content_type", "te") else f":{name}"] = value
    pairs = [(name, value) for name, value in own.items() if value is not None] + list(more)
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]


class Connection:
    """A connection to `target`, which is `host:port`. It reads only when a method needs more frames.

    window_bytes: how much the server may send on each stream. does_read: whether to enlarge the connection's window, so
    that the server may send more than the default.
    """

    def __init__(self, target: str, *, window_bytes: int = _WINDOW_BYTES, does_read: bool = True) -> None:
        host, _, port = target.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.goaway: int | None = None
        """The code of the GOAWAY that arrived."""
        self.is_closed = False
        self.unsent = b""
        self.settings: dict[int, int] = {}
        self.num_pongs = 0
        self._answers: dict[int, Answer] = {}
        self._decoder = Decoder()
        self._block = b""
        self._is_end = False
        self._buffer = b""
        self._next = 1
        self._window_bytes = _FIRST_WINDOW_BYTES
        """How many bytes may still be sent on the connection."""
        self._sent_bytes: Counter[int] = Counter()
        self._allowed_bytes: Counter[int] = Counter()
        """For each stream: the bytes sent, and the bytes allowed beyond the server's initial window."""
        settings = _INITIAL_WINDOW.to_bytes(2, "big") + window_bytes.to_bytes(4, "big")
        self.send(PREFACE + frame(Type.SETTINGS, 0, 0, settings))
        if does_read:
            self.send(frame(Type.WINDOW_UPDATE, 0, 0, (_WINDOW_BYTES).to_bytes(4, "big")))

    def __enter__(self) -> Connection:
        """Returns the connection."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connection."""
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends bytes unchanged. Sets `is_closed` if the server has closed the connection."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            self.is_closed = True

    def start(self, headers: Headers, *, is_last: bool = False) -> int:
        """Opens a stream with these headers. Returns its number."""
        stream = self.new_stream()
        block = encode(headers)
        parts = [block[at : at + _FRAME_BYTES] for at in range(0, len(block), _FRAME_BYTES)]
        for number, part in enumerate(parts):
            kind, flags = (Type.CONTINUATION, 0) if number else (Type.HEADERS, int(is_last))
            self.send(frame(kind, flags | (END_HEADERS if number == len(parts) - 1 else 0), stream, part))
        return stream

    def new_stream(self) -> int:
        """Returns the number of a new stream. The test sends its HEADERS frame itself."""
        stream, self._next = self._next, self._next + 2
        self._answers[stream] = Answer()
        return stream

    def data(self, stream: int, data: bytes, *, is_last: bool = False) -> None:
        """Sends DATA in as few frames as possible, at least one."""
        for at in range(0, len(data) or 1, _FRAME_BYTES):
            is_end = is_last and at + _FRAME_BYTES >= len(data)
            part = data[at : at + _FRAME_BYTES]
            self.send(frame(Type.DATA, int(is_end), stream, part))
            self._window_bytes -= len(part)
            self._sent_bytes[stream] += len(part)

    def data_in_turn(self, stream: int, data: bytes, *, is_last: bool = False) -> None:
        """Sends DATA within the server's flow-control windows until the stream has ended. `unsent` is the rest."""
        self.unsent = data
        while self.unsent and not (self._answers[stream].is_ended or self.is_closed):
            allowed = self.settings.get(_INITIAL_WINDOW, _FIRST_WINDOW_BYTES) + self._allowed_bytes[stream]
            room = min(self._window_bytes, allowed - self._sent_bytes[stream], _FRAME_BYTES)
            if room > 0:
                part, self.unsent = self.unsent[:room], self.unsent[room:]
                self.data(stream, part, is_last=is_last and not self.unsent)
            else:
                self.read_frame()

    def reset(self, stream: int, code: int = CANCEL) -> None:
        """Resets a stream."""
        self.send(frame(Type.RST_STREAM, 0, stream, code.to_bytes(4, "big")))

    def answer(self, stream: int) -> Answer:
        """Waits until the stream has ended or the server has closed the connection. Returns what arrived on the
        stream."""
        answer = self._answers[stream]
        while not answer.is_ended and not self.is_closed:
            self.read_frame()
        return answer

    def wait_for_data(self, stream: int, num_bytes: int) -> Answer:
        """Waits until `num_bytes` bytes of DATA have arrived on a stream. Returns what arrived."""
        return self._once(stream, lambda answer: len(answer.data) >= num_bytes)

    def answer_with(self, stream: int, num_messages: int) -> Answer:
        """Waits until `num_messages` messages have arrived on a stream. Returns what arrived."""
        return self._once(stream, lambda answer: len(answer.messages) >= num_messages)

    def _once(self, stream: int, is_enough: Callable[[Answer], bool]) -> Answer:
        answer = self._answers[stream]
        while not is_enough(answer):
            assert not answer.is_ended, answer
            assert not self.is_closed
            self.read_frame()
        return answer

    def ask(self, headers: Headers, body: bytes = b"") -> Answer:
        """Makes a whole call: headers, and the body in DATA frames. Returns the response."""
        stream = self.start(headers)
        self.data(stream, body, is_last=True)
        return self.answer(stream)

    def wait_until_closed(self) -> None:
        """Reads until the server closes the connection."""
        while not self.is_closed:
            self.read_frame()

    def ping(self) -> None:
        """Sends a PING and waits for its answer. Then the server has read everything sent before. Fails if it closes
        the connection."""
        wanted = self.num_pongs + 1
        self.send(frame(Type.PING, 0, 0, b"conforms"))
        while self.num_pongs < wanted:
            assert not self.is_closed, f"the server hung up (GOAWAY {self.goaway})"
            self.read_frame()

    def read_frame(self) -> None:
        """Reads the next frame and handles it."""
        if not self._fill(9) or not self._fill(9 + int.from_bytes(self._buffer[:3], "big")):
            self.is_closed = True
            return
        size = 9 + int.from_bytes(self._buffer[:3], "big")
        head, payload, self._buffer = self._buffer[:9], self._buffer[9:size], self._buffer[size:]
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:9], "big")
        if kind == Type.SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                self.settings[int.from_bytes(payload[at : at + 2], "big")] = int.from_bytes(
                    payload[at + 2 : at + 6], "big"
                )
            self.send(frame(Type.SETTINGS, ACK, 0))
        elif kind == Type.PING:
            if flags & ACK:
                self.num_pongs += 1
            else:
                self.send(frame(Type.PING, ACK, 0, payload))
        elif kind == Type.WINDOW_UPDATE:
            if stream:
                self._allowed_bytes[stream] += int.from_bytes(payload, "big")
            else:
                self._window_bytes += int.from_bytes(payload, "big")
        elif kind == Type.GOAWAY:
            self.goaway = int.from_bytes(payload[4:8], "big")
        elif stream:
            self._take(kind, flags, self._answers[stream], payload)

    def _take(self, kind: int, flags: int, answer: Answer, payload: bytes) -> None:
        if kind in (Type.HEADERS, Type.CONTINUATION):
            self._block += payload
            if kind == Type.HEADERS:
                self._is_end = bool(flags & END_STREAM)
            if flags & END_HEADERS:
                headers = {name.decode(): value.decode("latin-1") for name, value in self._decoder.decode(self._block)}
                self._block = b""
                if answer.headers:
                    answer.trailers = headers
                else:
                    answer.headers = headers
                answer.is_ended = self._is_end
        elif kind == Type.DATA:
            answer.data += payload
            answer.is_ended = bool(flags & END_STREAM)
        elif kind == Type.RST_STREAM:
            answer.reset = int.from_bytes(payload, "big")
            answer.is_ended = True

    def _fill(self, size: int) -> bool:
        """Waits for `size` buffered bytes. Returns False if the server closes the connection first."""
        while len(self._buffer) < size:
            try:
                more = self.socket.recv(65536)
            except ConnectionResetError:
                more = b""
            if not more:
                return False
            self._buffer += more
        return True
