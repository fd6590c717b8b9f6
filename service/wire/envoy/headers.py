"""Converts HTTP headers to gRPC metadata and back, parses time limits, and writes statuses as trailers. Pure.

See https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote_to_bytes

import grpc

from service.errors import quoted
from service.wire.marks import CONNECT, UNARY

Headers = Iterable[tuple[bytes, bytes]]
Metadata = tuple[tuple[str, str | bytes], ...]

_ENTRY_BYTES = 32
"""Bytes that HTTP/2 counts for each header in addition to its name and value."""
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
CERTIFICATE = b"x-forwarded-client-cert"
"""The header in which Envoy passes the client's certificate. Envoy removes a header of this name that a client
sends."""
_TRANSPORT = {"te", "content-type", "content-length", "host", "connection", "transfer-encoding"}
_TRANSPORT |= {CERTIFICATE.decode(), UNARY, CONNECT}
# The element `By`, which precedes `Hash`, has names of the server's own certificate, unescaped.
_PEM = re.compile(rb'(?:.*;)?Hash=[0-9a-f]{64};Cert="([^"]+)"', re.DOTALL)
_CONNECT_VERSIONS = {b"1", b"-"}
_NAME = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_OURS = _TRANSPORT | {"grpc-status", "grpc-message", "grpc-encoding", "grpc-accept-encoding"}
_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def size_of(headers: Headers) -> int:
    """Returns the size of a client's headers in bytes, as HTTP/2 counts it (RFC 9113, 10.5.1)."""
    return sum(len(name) + len(value) + _ENTRY_BYTES for name, value in headers if name != CERTIFICATE)


def certificate_of(value: bytes) -> bytes:
    """Returns the client's certificate, in PEM, from Envoy's header `x-forwarded-client-cert`. Raises ValueError for a
    value that Envoy does not make."""
    match = _PEM.fullmatch(value)
    if match is None:
        raise ValueError(f"x-forwarded-client-cert is {quoted(value)}: expected Hash and Cert")
    return unquote_to_bytes(match[1])


def metadata_of(headers: Headers) -> Metadata:
    """Returns the metadata of a call: all headers except those of the transport, of gRPC, and of Envoy about the
    client. Values of names that end in `-bin` are bytes; a value that is not base64 is left out."""
    found: list[tuple[str, str | bytes]] = []
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1")
        if name in _TRANSPORT or name.startswith("grpc-"):
            continue
        if not name.endswith("-bin"):
            found.append((name, raw_value.decode("latin-1")))
            continue
        for part in raw_value.split(b","):
            value = _bytes_of(part.strip())
            if value is not None:
                found.append((name, value))
    return tuple(found)


def _bytes_of(value: bytes) -> bytes | None:
    try:
        return b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        return None


def seconds_of(timeout: str) -> float | None:
    """Returns the seconds in a header `grpc-timeout`; None if it is malformed."""
    match = _TIMEOUT.fullmatch(timeout)
    return None if match is None else int(match[1]) * _SECONDS[match[2]]


def why_malformed(headers: Mapping[bytes, bytes]) -> tuple[grpc.StatusCode, str] | None:
    """Returns the status for a call whose headers violate its protocol; None if they are valid."""
    version = headers.get(CONNECT.encode())
    if version is not None and version not in _CONNECT_VERSIONS:
        text = f"connect-protocol-version is {quoted(version.decode('latin-1'))}: expected 1"
        return grpc.StatusCode.INVALID_ARGUMENT, text
    if version is not None and (timeout := headers.get(b"connect-timeout-ms")) is not None:  # only if it is invalid
        text = f"connect-timeout-ms is {quoted(timeout.decode('latin-1').rstrip('+'))}: expected up to 10 digits"
        return grpc.StatusCode.INVALID_ARGUMENT, text
    if b"trailers" not in headers.get(b"te", b""):
        text = "the header te must contain trailers: a proxy may have removed it"
        return grpc.StatusCode.INTERNAL, text
    said = headers.get(b"grpc-timeout", b"1S").decode("latin-1")
    if seconds_of(said) is None:
        text = f"grpc-timeout is {said[:40]!r}: expected up to 8 digits and one of H, M, S, m, u, n"
        return grpc.StatusCode.INTERNAL, text
    return None


def checked(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[str, str | bytes]]:
    """Returns a handler's metadata as a list. Raises ValueError for metadata that HTTP cannot carry: Envoy would end
    the call as if it had succeeded."""
    found = list(metadata)
    for name, value in found:
        if not _NAME.fullmatch(name) or name in _OURS:
            raise ValueError(
                f"{name[:100]!r} is not a valid metadata name: expected a-z, 0-9, '_', '.' and '-', not gRPC's own"
            )
        if isinstance(value, str) and not _VALUE.fullmatch(value):
            raise ValueError(f"the metadata {name[:100]!r} is {value[:100]!r}: expected printable ASCII")
    return found


def encoded(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """Returns metadata as headers. Bytes are base64 without padding."""
    return [
        (name.encode(), value.encode() if isinstance(value, str) else b64encode(value).rstrip(b"="))
        for name, value in metadata
    ]


def status_headers(
    code: grpc.StatusCode, details: str, metadata: Iterable[tuple[str, str | bytes]]
) -> list[tuple[bytes, bytes]]:
    """Returns the trailers for the end of a call."""
    headers = [(b"grpc-status", b"%d" % code.value[0])]
    if details:
        headers.append((b"grpc-message", quote(details, safe=_SAFE).encode()))
    return headers + encoded(metadata)
