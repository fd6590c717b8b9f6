"""WAV files of PCM: the header, and samples as numbers from -1 up to 1, of one channel.

Not by the module `wave` of the standard library: before Python 3.12 that refuses the header which most programs write
for 24 bits or more than two channels (WAVE_FORMAT_EXTENSIBLE).
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from carousel.cli.reading import InputError

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_CODES = {8: "B", 16: "h", 24: "i", 32: "i"}
"""The type of samples by their bits; those of 24 are widened."""
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)
"""What programs that write to a pipe give as the size of all samples."""
_LONGEST_FORMAT = 4096
_FORMAT = struct.Struct("<HHIIHH")
"""Format, channels, samples a second, bytes a second, bytes of a sample of all channels, bits."""
_SUBFORMAT_AT = 24
_SKIPPED = 65_536


@dataclass(frozen=True, slots=True)
class Pcm:
    """How samples are written. rate: a second, of each channel; num_bytes: of all samples; None: up to the end."""

    bits: int
    channels: int = 1
    rate: int = 0
    num_bytes: int | None = None

    @property
    def width(self) -> int:
        """The bytes of a sample of all channels."""
        return self.bits // 8 * self.channels

    def numbers(self, data: bytes) -> array[float]:
        """The samples, the mean of the channels. data: whole samples."""
        return array("f", self._scaled(data))

    def _scaled(self, data: bytes) -> Sequence[float]:
        size = 8 if self.bits == 8 else 32 if self.bits == 24 else self.bits
        scale = 2.0 ** (1 - size) / self.channels
        middle = 128 * self.channels if self.bits == 8 else 0  # those of 8 bits have no sign
        integers = array(_CODES[self.bits], _widened(data) if self.bits == 24 else data)
        if sys.byteorder == "big":
            integers.byteswap()
        if self.channels == 1:
            return [(integer - middle) * scale for integer in integers]
        columns = [integers[channel :: self.channels] for channel in range(self.channels)]
        return [(sum(each) - middle) * scale for each in zip(*columns, strict=True)]


def header(file: IO[bytes], name: str) -> Pcm:
    """Reads up to the first sample. name: for errors. Raises InputError for what is no WAV file, or has no PCM."""
    begin = file.read(12)
    if begin[:4] not in (b"RIFF", b"RF64") or begin[8:] != b"WAVE":
        raise InputError(f"{name} is no WAV file: it begins with {begin[:4]!r}, and those with b'RIFF'")
    found: Pcm | None = None
    while len(start := file.read(8)) == 8:
        kind, size = start[:4], int.from_bytes(start[4:], "little")
        if kind == b"data":
            if found is None:
                raise InputError(f"{name} is no WAV file: its samples come before their format")
            return Pcm(found.bits, found.channels, found.rate, None if size in _UNKNOWN_SIZES else size)
        padded = size + size % 2
        if kind == b"fmt ":
            found = _format(file.read(min(padded, _LONGEST_FORMAT)), name)
        else:
            _skip(file, padded)
    raise InputError(f"{name} has no samples: it ends before them")


def _format(data: bytes, name: str) -> Pcm:
    if len(data) < _FORMAT.size:
        raise InputError(f"{name} is no WAV file: the format of its samples has {len(data)} bytes")
    kind, channels, rate, _, width, bits = _FORMAT.unpack_from(data)
    if kind == _EXTENSIBLE and len(data) >= _SUBFORMAT_AT + 2:
        kind = int.from_bytes(data[_SUBFORMAT_AT : _SUBFORMAT_AT + 2], "little")
    if kind != _PCM or bits not in _CODES:
        what = f"{bits}-bit floats" if kind == _FLOAT else f"{bits} bits"
        raise InputError(
            f"{name} has samples of {what} (WAV format {kind}), and PCM of 8, 16, 24 or 32 bits is read: convert it,"
            f" such as by `ffmpeg -i {name} -c:a pcm_s16le converted.wav`"
        )
    if not channels or width != channels * bits // 8:
        raise InputError(f"{name} is no WAV file: {channels} channels of {bits} bits do not take {width} bytes")
    return Pcm(bits, channels, rate)


def _skip(file: IO[bytes], num_bytes: int) -> None:
    while num_bytes and (data := file.read(min(num_bytes, _SKIPPED))):
        num_bytes -= len(data)


def _widened(data: bytes) -> bytes:
    """Samples of 24 bits as the upper bytes of 32, little-endian."""
    wide = bytearray(len(data) // 3 * 4)
    for byte in range(3):
        wide[byte + 1 :: 4] = data[byte::3]
    return bytes(wide)
