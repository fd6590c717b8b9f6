"""gRPC's framing of messages: one byte that says whether the message is compressed, four bytes of length, the message.

See https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. Pure.
"""

from __future__ import annotations

import zlib

ENCODINGS = "identity,deflate,gzip"
"""Compressions that clients may use, as in the header `grpc-accept-encoding`."""
_HEADER = 5
_WINDOWS = {"deflate": zlib.MAX_WBITS, "gzip": zlib.MAX_WBITS | 16}


class FrameError(Exception):
    """Received data is not a message that this server accepts. code: name of the gRPC status for the call."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Frames:
    """Splits received data into messages. encoding: the compression, as in the header `grpc-encoding`; max_bytes: most
    bytes of one message, both compressed and decompressed."""

    def __init__(self, encoding: str, max_bytes: int) -> None:
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._rest = b""
        self._at = 0

    def add(self, chunk: bytes) -> None:
        """Adds received data, in pieces of any size."""
        rest = len(self._rest) - self._at
        self._rest = chunk if not rest else self._rest[self._at :] + chunk
        self._at = 0

    def next(self) -> bytes | None:
        """Returns the next complete message; None if there is none yet. Raises FrameError."""
        rest, at = self._rest, self._at
        if at < len(rest) and rest[at] > 1:
            reason = f"the first byte of a frame is {rest[at]}: expected 0 or 1, then 4 bytes of length, then a message"
            raise FrameError("INTERNAL", reason)
        begin = at + _HEADER
        if len(rest) < begin:
            return None
        end = begin + int.from_bytes(rest[at + 1 : begin], "big")
        if end - begin > self._max_bytes:
            reason = f"SERVER: Received message larger than max ({end - begin} vs. {self._max_bytes})"
            raise FrameError("RESOURCE_EXHAUSTED", reason)  # in gRPC's own words, because clients look for them
        if len(rest) < end:
            return None
        self._at = end
        return self._decompressed(rest[begin:end]) if rest[at] else rest[begin:end]

    @property
    def is_empty(self) -> bool:
        """Whether all received data was returned as messages."""
        return self._at == len(self._rest)

    def _decompressed(self, data: bytes) -> bytes:
        if not data and self._encoding:  # some clients do not compress what is empty
            return b""
        if self._encoding not in _WINDOWS:
            what = f"grpc-encoding is {self._encoding[:40]!r}" if self._encoding else "grpc-encoding is missing"
            code = "INTERNAL" if self._encoding in ("", "identity") else "UNIMPLEMENTED"
            raise FrameError(code, f"a message is compressed and {what}: expected one of {ENCODINGS}")
        decoder = zlib.decompressobj(_WINDOWS[self._encoding])
        try:
            message = decoder.decompress(data, self._max_bytes + 1)
        except zlib.error:
            raise FrameError("INTERNAL", f"a compressed message is not valid {self._encoding}") from None
        if len(message) > self._max_bytes:
            reason = f"a decompressed message has more than {self._max_bytes} bytes, the limit (max_message_bytes)"
            raise FrameError("RESOURCE_EXHAUSTED", reason)
        if not decoder.eof:
            raise FrameError("INTERNAL", f"a compressed message is incomplete ({self._encoding})")
        if decoder.unused_data:
            raise FrameError(
                "INTERNAL", f"a compressed message has {len(decoder.unused_data)} bytes after its {self._encoding} data"
            )
        return message


def framed(message: bytes) -> bytes:
    """Returns a message in an uncompressed frame."""
    return b"\0" + len(message).to_bytes(4, "big") + message
