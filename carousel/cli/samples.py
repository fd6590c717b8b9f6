"""Reads a model's input from a file or standard input: samples as numbers, or the tokens of a text.

Data comes in blocks of what is available at each read, so a pipe's data is passed on as soon as it arrives. Blocks of
numbers have the steps one after the other, and may end inside a step.
"""

from __future__ import annotations

import codecs
import io
import re
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, TypeAlias

from carousel.cli import wav
from carousel.cli.printing import note
from carousel.cli.reading import CutOffError, InputError, named
from carousel.cli.tables import Columns, Table, filled_in
from carousel.values import ModelInfo

Numbers: TypeAlias = "array[float]"

_BLOCK = 65_536
"""The most bytes in a block. It is also the size of a Linux pipe."""
_FLOAT_SIZE = 4
_PIECE = re.compile(r"\n|\S+")
"""Matches a token between white space, or a line end."""
_NPY = b"\x93NUMPY"


class Format(StrEnum):
    """The format of samples. wav: PCM. s16, f32: raw 16-bit integers or 32-bit floats, little-endian, one channel. csv:
    numbers as text. npy: a NumPy array."""

    WAV = "wav"
    S16 = "s16"
    F32 = "f32"
    CSV = "csv"
    NPY = "npy"


@contextmanager
def numbers(path: Path, info: ModelInfo, kind: Format | None, rate: int | None) -> Iterator[Iterator[Numbers]]:
    """Yields the numbers of steps, in blocks.

    path: `-` for standard input. kind: None to choose by the file's name. rate: samples a second that a WAV file must
    have.

    Raises InputError for data that cannot be read; at once if the beginning of the file shows it.
    """
    name = named(path)
    with _opened(path) as file:
        kind = kind or _kind_of(path)
        if rate is not None and kind is not Format.WAV:
            raise InputError(f"--rate is only for WAV files, and {name} has the format {kind}: leave it out")
        if len(info.fed) > 1 and kind is not Format.CSV:
            names = ", ".join(port.name for port in info.fed)
            raise InputError(f"{info.model} reads {names}: give a CSV file whose first line has these names")
        yield _READERS[kind](file, name, info, rate)


@contextmanager
def tokens(path: Path, info: ModelInfo) -> Iterator[Iterator[list[tuple[int, str]]]]:
    """Yields the tokens of a text, in blocks, each with the number of its line, from 1. A token is a character or a
    word between white space, as the model splits text."""
    with _opened(path) as file:
        yield _tokens(file, named(path), is_of_characters=info.tokenizer == "characters")


def _kind_of(path: Path) -> Format:
    try:
        return Format(path.suffix.lower().removeprefix("."))
    except ValueError:
        *some, last = Format
        expected = f"{', '.join(some)} or {last}"
        raise InputError(
            f"the format of {named(path)} is not clear from its name: give --format, one of {expected}"
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    with file:
        yield file


def _blocks(file: IO[bytes], width: int, name: str, limit: int | None = None) -> Iterator[bytes]:
    """Yields blocks of whole samples. width: bytes of one sample. limit: bytes of all samples, as the header declares.

    Raises CutOffError, after the last block, if the file has fewer.
    """
    rest, declared = b"", limit
    while limit is None or limit > 0:
        data = file.read1(_BLOCK if limit is None else min(_BLOCK, limit))  # type: ignore[attr-defined]  # all have it
        if not data:
            break
        limit = None if limit is None else limit - len(data)
        data = rest + data
        whole = len(data) - len(data) % width
        rest = data[whole:]
        if whole:
            yield data[:whole]
    if rest:
        note(f"{name} ends within a sample: {len(rest)} of its {width} bytes are left out")
    if limit:
        raise CutOffError(f"{name} is cut off: {limit} of the {declared} bytes of samples that it declares are missing")


def _wav(file: IO[bytes], name: str, info: ModelInfo, rate: int | None) -> Iterator[Numbers]:
    pcm = wav.header(file, name)
    if pcm is None:
        return iter(())
    who = "--rate says" if rate is not None else f"{info.model} reads"
    rate = info.sample_rate or None if rate is None else rate
    if rate is not None and rate != pcm.rate:
        raise InputError(
            f"{name} has {pcm.rate} samples a second, but {who} {rate}: convert it, such as by"
            f" `ffmpeg -i {name} -ar {rate} converted.wav`"
        )
    if rate is None:
        channels = f"{pcm.channels} channels" if pcm.channels > 1 else "1 channel"
        note(f"{name}: {pcm.rate} samples a second, {channels}, {pcm.bits} bits")
    return (pcm.numbers(block) for block in _blocks(file, pcm.width, name, pcm.num_bytes))


def _s16(file: IO[bytes], name: str, info: ModelInfo, rate: int | None) -> Iterator[Numbers]:
    pcm = wav.Pcm(16)
    return (pcm.numbers(block) for block in _raw(file, name, pcm.width))


def _f32(file: IO[bytes], name: str, info: ModelInfo, rate: int | None) -> Iterator[Numbers]:
    for block in _raw(file, name, _FLOAT_SIZE):
        found = array("f", block)
        if sys.byteorder == "big":
            found.byteswap()
        yield found


def _raw(file: IO[bytes], name: str, width: int) -> Iterator[bytes]:
    """Raises InputError for a WAV file, because its header would be read as samples."""
    is_first = True
    for block in _blocks(file, width, name):
        if is_first and block[:4] == b"RIFF" and block[8:12] == b"WAVE":
            raise InputError(f"{name} is a WAV file: give --format wav")
        is_first = False
        yield block


def _csv(file: IO[bytes], name: str, info: ModelInfo, rate: int | None) -> Iterator[Numbers]:
    table = Table(name, Columns(info))
    for text in _texts(file, name):
        found = table.add(text)
        if found:
            yield found
    found = table.end()
    if found:
        yield found


def _npy(file: IO[bytes], name: str, info: ModelInfo, rate: int | None) -> Iterator[Numbers]:
    try:
        import numpy as np  # noqa: PLC0415  # it may not be installed
    except ModuleNotFoundError:
        raise InputError(f"{name} is a NumPy array, but NumPy is not installed: pip install numpy") from None
    data = file.read()
    if not data:
        return iter(())
    try:
        if _NPY.startswith(data):
            raise ValueError("it ends within its header")
        if not data.startswith(_NPY):
            raise ValueError(f"it begins with {data[: len(_NPY)]!r}, not with {_NPY!r}")
        found: Any = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{name} is not a NumPy array: {error}") from None
    shape, dtype = found.shape, found.dtype
    if dtype.kind not in "fiub" or not (len(shape) == 1 or (len(shape) == 2 and shape[1] == info.fed_size)):
        raise InputError(
            f"{name} has shape {list(shape)} of {dtype}, but {info.model} reads numbers, [numbers] or"
            f" [steps, {info.fed_size}]{filled_in(info)}"
        )
    if dtype.kind in "iu" and (not info.fed or any(port.dtype.startswith("float") for port in info.fed)):
        note(f"{name} has integers ({dtype}): they are fed unchanged, while samples of WAV are scaled to -1 to 1")
    return iter([array("f", found.astype(np.float32).tobytes())])


_READERS: dict[Format, Callable[[IO[bytes], str, ModelInfo, int | None], Iterator[Numbers]]] = {
    Format.WAV: _wav,
    Format.S16: _s16,
    Format.F32: _f32,
    Format.CSV: _csv,
    Format.NPY: _npy,
}


def _texts(file: IO[bytes], name: str) -> Iterator[str]:
    """Yields a text in blocks, with \\n as line ends. Raises InputError if it is not UTF-8."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    try:
        for block in _blocks(file, 1, name):
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text: {error.reason} {error.object[error.start :][:1]!r}") from None


def _tokens(file: IO[bytes], name: str, *, is_of_characters: bool) -> Iterator[list[tuple[int, str]]]:
    line, rest = 1, ""
    for text in _texts(file, name):
        pieces = list(text) if is_of_characters else _PIECE.findall(rest + text)
        if not is_of_characters:
            rest = pieces.pop() if pieces and not text[-1:].isspace() else ""
        found = []
        for piece in pieces:
            if is_of_characters or piece != "\n":
                found.append((line, piece))
            line += piece == "\n"
        if found:
            yield found
    if rest:
        yield [(line, rest)]
