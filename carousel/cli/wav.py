"""Reads WAV files of PCM: the header, and the samples as numbers from -1 to 1, of one channel.

Python's module `wave` is not used: before Python 3.12 it refuses WAVE_FORMAT_EXTENSIBLE, the header that most programs
write for 24 bits or more than two channels.
"""

from __future__ import annotations

import io
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import IO

from carousel.cli.reading import InputError

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_CODES = {8: "B", 16: "h", 24: "i", 32: "i"}
"""The array type of samples by their bits. Samples of 24 bits are widened to 32."""
_UNKNOWN_SIZE = 0xFFFFFFFF
"""The declared size of the samples when the writing program did not know it."""
_LEAST_PIPED_SIZE = 0x7FFFF000
"""Programs that write to a pipe declare 0, or at least this: 0x7FFFF000, 0x80000000 and 0xFFFFFFFF are usual."""
_SIZES_CHUNK = 28
"""Bytes of the chunk `ds64`, which has the sizes that need more than 32 bits."""
_KINDS = (b"RIFF", b"RF64")
_LONGEST_FORMAT = 4096
_FORMAT = struct.Struct("<HHIIHH")
"""Format, channels, samples a second, bytes a second, bytes of one sample of all channels, bits."""
_SUBFORMAT_AT = 24
_SKIPPED = 65_536


@dataclass(frozen=True, slots=True)
class Pcm:
    """The form of samples. rate: a second, for each channel. num_bytes: of all samples; None for up to the end."""

    bits: int
    channels: int = 1
    rate: int = 0
    num_bytes: int | None = None

    @property
    def width(self) -> int:
        """The bytes of one sample of all channels."""
        return self.bits // 8 * self.channels

    def numbers(self, data: bytes) -> array[float]:
        """Returns the samples, as the mean of the channels. data: whole samples."""
        return array("f", self._scaled(data))

    def _scaled(self, data: bytes) -> Sequence[float]:
        size = 8 if self.bits == 8 else 32 if self.bits == 24 else self.bits
        scale = 2.0 ** (1 - size) / self.channels
        middle = 128 * self.channels if self.bits == 8 else 0  # 8-bit samples are unsigned
        integers = array(_CODES[self.bits], _widened(data) if self.bits == 24 else data)
        if sys.byteorder == "big":
            integers.byteswap()
        if self.channels == 1:
            return [(integer - middle) * scale for integer in integers]
        columns = [integers[channel :: self.channels] for channel in range(self.channels)]
        return [(sum(each) - middle) * scale for each in zip(*columns, strict=True)]


def header(file: IO[bytes], name: str) -> Pcm | None:
    """Reads up to the first sample. name: for errors. Returns None for an empty file.

    Raises InputError for a file that is not WAV, or has no PCM.
    """
    begin = file.read(12)
    if not begin:
        return None
    if len(begin) < 12 and any(kind.startswith(begin[:4]) for kind in _KINDS):
        raise _short(name)
    if begin[:4] not in _KINDS or begin[8:] != b"WAVE":
        raise InputError(f"{name} is not a WAV file: it begins with {begin[:4]!r}, not with b'RIFF'")
    found: Pcm | None = None
    whole_size = 0
    while start := file.read(8):
        if len(start) < 8:
            raise _short(name)
        kind, size = start[:4], int.from_bytes(start[4:], "little")
        if kind == b"data":
            if found is None:
                raise InputError(f"{name} is not a WAV file: its samples come before their format")
            if size == _UNKNOWN_SIZE and whole_size:
                size = whole_size
            return replace(found, num_bytes=_size_of_samples(file, name, size))
        padded = size + size % 2
        data = file.read(min(padded, _LONGEST_FORMAT))
        if kind == b"fmt " and len(data) >= min(size, _FORMAT.size):
            found = _format(data, name)
        elif kind == b"ds64" and len(data) >= _SIZES_CHUNK:
            whole_size = int.from_bytes(data[8:16], "little")
        if len(data) + _skip(file, padded - len(data)) < size:
            raise _short(name)
    raise InputError(f"{name} has no samples: it ends before them")


def _format(data: bytes, name: str) -> Pcm:
    if len(data) < _FORMAT.size:
        raise InputError(f"{name} is not a WAV file: the format of its samples has {len(data)} bytes")
    kind, channels, rate, _, width, bits = _FORMAT.unpack_from(data)
    if kind == _EXTENSIBLE and len(data) >= _SUBFORMAT_AT + 2:
        kind = int.from_bytes(data[_SUBFORMAT_AT : _SUBFORMAT_AT + 2], "little")
    if kind != _PCM or bits not in _CODES:
        what = f"{bits}-bit floats" if kind == _FLOAT else f"{bits} bits"
        raise InputError(
            f"{name} has samples of {what} (WAV format {kind}): expected PCM of 8, 16, 24 or 32 bits: convert it,"
            f" such as by `ffmpeg -i {name} -c:a pcm_s16le converted.wav`"
        )
    if not channels or width != channels * bits // 8:
        raise InputError(f"{name} is not a WAV file: {channels} channels of {bits} bits do not take {width} bytes")
    return Pcm(bits, channels, rate)


def _skip(file: IO[bytes], num_bytes: int) -> int:
    """Skips bytes. Returns how many there were."""
    left = num_bytes
    while left and (data := file.read(min(left, _SKIPPED))):
        left -= len(data)
    return num_bytes - left


def _size_of_samples(file: IO[bytes], name: str, declared: int) -> int | None:
    """The bytes of all samples; None for up to the end. Raises InputError if the file declares 0 bytes but has some."""
    if not file.seekable():
        return declared if 0 < declared < _LEAST_PIPED_SIZE else None
    if not declared and not _is_chunks(file):
        raise InputError(
            f"{name} declares that it has no samples, but data follows: the program that wrote it did not finish it. To"
            f" feed this data, use a pipe: cat {name} | carousel stream MODEL - --format wav"
        )
    return None if declared == _UNKNOWN_SIZE else declared


def _is_chunks(file: IO[bytes]) -> bool:
    """Whether only chunks, or nothing, follow up to the end of the file. Does not move the file's position."""
    begin = at = file.tell()
    end = file.seek(0, io.SEEK_END)
    while at + 8 <= end:
        file.seek(at)
        start = file.read(8)
        if any(not 0x20 <= letter < 0x7F for letter in start[:4]):
            break
        size = int.from_bytes(start[4:], "little")
        at += 8 + size + size % 2
    file.seek(begin)
    return at in (end, end + 1)  # files often lack the last padding byte, which makes the size even


def _short(name: str) -> InputError:
    return InputError(f"{name} ends within its header: it was cut off")


def _widened(data: bytes) -> bytes:
    """Returns 24-bit samples as the upper bytes of 32-bit samples, little-endian."""
    wide = bytearray(len(data) // 3 * 4)
    for byte in range(3):
        wide[byte + 1 :: 4] = data[byte::3]
    return bytes(wide)
