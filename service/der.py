"""Parses DER (X.690), the encoding of certificates. Pure."""

from __future__ import annotations

_SEQUENCE = 0x30
_VERSION = 0xA0
"""The tag of a certificate's version. Certificates of version 1 have no version field."""


def fields_of(certificate: bytes) -> list[tuple[int, bytes]]:
    """Returns the fields of a certificate as (tag, content), without its version: serial number, algorithm, issuer,
    validity, subject, and more (RFC 5280, 4.1). Raises ValueError and IndexError for other bytes."""
    ((tag, whole),) = elements(certificate)
    if tag != _SEQUENCE:
        raise ValueError(f"unexpected DER tag: expected {_SEQUENCE:#x}")
    signed = elements(elements(whole)[0][1])
    return signed[1:] if signed[0][0] == _VERSION else signed


def elements(data: bytes) -> list[tuple[int, bytes]]:
    """Returns (tag, content) of each element. Raises ValueError and IndexError for data that is cut short."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        tag, size, begin = data[at], data[at + 1], at + 2
        if size >= 0x80:
            begin += size - 0x80
            size = int.from_bytes(data[at + 2 : begin])
        at = begin + size
        if at > len(data):
            raise ValueError("a DER element is truncated")
        found.append((tag, data[begin:at]))
    return found
