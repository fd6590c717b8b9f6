"""Encodes and decodes HTTP/2 headers (RFC 7541), as far as a test client needs it. Pure.

Encodes every header as a literal without indexing; decodes whatever a server sends.
"""

from __future__ import annotations

Headers = list[tuple[bytes, bytes]]

_NAMES = (
    ":authority= :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200"
    " :status=204 :status=206 :status=304 :status=400 :status=404 :status=500 accept-charset="
    " accept-encoding=gzip,_deflate accept-language= accept-ranges= accept= access-control-allow-origin= age="
    " allow= authorization= cache-control= content-disposition= content-encoding= content-language="
    " content-length= content-location= content-range= content-type= cookie= date= etag= expect= expires= from="
    " host= if-match= if-modified-since= if-none-match= if-range= if-unmodified-since= last-modified= link="
    " location= max-forwards= proxy-authenticate= proxy-authorization= range= referer= refresh= retry-after="
    " server= set-cookie= strict-transport-security= transfer-encoding= user-agent= vary= via= www-authenticate="
)
_STATIC = [tuple(entry.split("=", 1)) for entry in _NAMES.split()]
_LENGTHS = {
    5: "012aceiost",
    6: " %-./3456789=A_bdfghlmnpru",
    7: ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: "&*,;XZ",
    10: '!"()?',
    11: "'+|",
    12: "#>",
    13: "\0$@[]~",
    14: "^}",
    15: "<`{",
}
"""The characters of the Huffman code by their number of bits. The code is canonical, so no table of codes is needed.
Longer codes belong to characters that no header of these tests has."""


def _codes() -> dict[tuple[int, int], int]:
    """Returns the character of each (number of bits, code)."""
    found, code, last = {}, 0, 0
    for bits, characters in _LENGTHS.items():
        code <<= bits - last
        last = bits
        for character in sorted(characters):
            found[bits, code] = ord(character)
            code += 1
    return found


_CODES = _codes()


def encode(headers: Headers) -> bytes:
    """Returns a header block."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in headers)


def _string(data: bytes) -> bytes:
    return _integer(len(data), 7) + data


def _integer(value: int, bits: int) -> bytes:
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([value])
    found = bytearray([limit])
    value -= limit
    while value >= 128:
        found.append(value % 128 + 128)
        value //= 128
    found.append(value)
    return bytes(found)


class Decoder:
    """Decodes the header blocks of one connection, in order."""

    def __init__(self) -> None:
        self._remembered: Headers = []
        self._data = b""
        self._at = 0

    def decode(self, block: bytes) -> Headers:
        """Returns the headers of a block."""
        self._data, self._at = block, 0
        found = []
        while self._at < len(block):
            first = block[self._at]
            if first & 0x80:
                found.append(self._known(self._number(7)))
            elif first & 0xE0 == 0x20:
                self._number(5)  # a new size of the table, which these tests do not fill
            else:
                is_kept = bool(first & 0x40)
                index = self._number(6 if is_kept else 4)
                name = self._known(index)[0] if index else self._text()
                header = name, self._text()
                found.append(header)
                if is_kept:
                    self._remembered.insert(0, header)
        return found

    def _known(self, index: int) -> tuple[bytes, bytes]:
        if index > len(_STATIC):
            return self._remembered[index - len(_STATIC) - 1]
        name, value = _STATIC[index - 1]
        return name.encode(), value.replace("_", " ").encode()

    def _number(self, bits: int) -> int:
        limit = (1 << bits) - 1
        value = self._data[self._at] & limit
        self._at += 1
        if value < limit:
            return value
        shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            value += (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def _text(self) -> bytes:
        is_huffman = bool(self._data[self._at] & 0x80)
        size = self._number(7)
        data = self._data[self._at : self._at + size]
        self._at += size
        return _from_huffman(data) if is_huffman else data


def _from_huffman(data: bytes) -> bytes:
    found, bits, code = bytearray(), 0, 0
    for byte in data:
        for shift in range(7, -1, -1):
            bits, code = bits + 1, code << 1 | byte >> shift & 1
            if (bits, code) in _CODES:
                found.append(_CODES[bits, code])
                bits = code = 0
    assert code == (1 << bits) - 1, "a character whose code is not known here"
    return bytes(found)
