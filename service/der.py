"""Reads DER, in which certificates are (X.690). Pure."""

from __future__ import annotations


def elements(data: bytes) -> list[tuple[int, bytes]]:
    """The tag and the contents of each element. Raises ValueError and IndexError for what is cut short."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        tag, size, begin = data[at], data[at + 1], at + 2
        if size >= 0x80:
            begin += size - 0x80
            size = int.from_bytes(data[at + 2 : begin])
        at = begin + size
        if at > len(data):
            raise ValueError("an element is cut short")
        found.append((tag, data[begin:at]))
    return found
