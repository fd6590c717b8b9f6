"""Draws attention as text: what the model read across, what it gave down, darker where a weight is larger. Pure.

1. A cell is as wide as the label above it. Its shade is the weight, rounded to the nearest quarter.
2. Labels that are wider together than the lines may be are drawn in parts, one below the other, with all rows each.
3. Pieces of words are put together into words: weights are summed over the pieces of a word that was read, and averaged
   over those of a word that was given. A row's sum stays 1. Marks are words, so that they do not blur those beside.

Needs nothing of the extra `cli`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BLOCKS, ASCII = " ░▒▓█", " .:*#"
"""Shades, from a weight of 0 to one of 1."""

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece begins words with."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_CONTROL = re.compile(r"</?\w+>")
_LONGEST_LABEL = 24
_LEAST_CELL = 2
_GAP = 1


@dataclass(frozen=True, slots=True)
class Attention:
    """Where a model looked before it gave each token. source: [S] labels of what it read; target: [T] labels of what it
    gave; weights: [T, S], 0 to 1, in a row 1 together."""

    source: Sequence[str]
    target: Sequence[str]
    weights: Sequence[Sequence[float]]

    def of_words(self) -> Attention:
        """The same over words, of source and target that are pieces, as SentencePiece writes them."""
        read, given = _words(self.source), _words(self.target)
        rows = [[sum(row[at] for at in word) for word in read] for row in self.weights]
        return Attention(
            [_spelled([self.source[at] for at in word]) for word in read],
            [_spelled([self.target[at] for at in word]) for word in given],
            [[sum(column) / len(word) for column in zip(*(rows[at] for at in word), strict=True)] for word in given],
        )


def shades_in(encoding: str | None) -> str:
    """The shades that a text in an encoding can have: `BLOCKS`, or else `ASCII`."""
    try:
        BLOCKS.encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return ASCII
    return BLOCKS


def drawn(attention: Attention, *, width: int, shades: str = BLOCKS) -> list[str]:
    """The lines of the picture, the last one saying what the shades are. width: columns of a line, at most, where a
    label is not wider."""
    rows = [_cut(label) for label in attention.target]
    columns = [_cut(label) for label in attention.source]
    cells = [max(_LEAST_CELL, _width(label)) for label in columns]
    margin = max(map(_width, rows), default=0)
    lines = []
    for part in _parts(cells, width - margin - _GAP):
        lines.append(_line(" " * margin, (_padded(columns[at], cells[at]) for at in part)))
        for label, weights in zip(rows, attention.weights, strict=True):
            name = " " * (margin - _width(label)) + label
            lines.append(_line(name, (_shade(weights[at], shades) * cells[at] for at in part)))
        lines.append("")
    quarters = [f"{shade} {25 * place} %" for place, shade in enumerate(shades) if place]
    return [*lines, f"{'  '.join(quarters)} of a row's attention, rounded"]


def _words(pieces: Sequence[str]) -> list[list[int]]:
    """The places of the pieces of each word. Marks before and after a word, and control pieces, are words."""
    words: list[list[int]] = []
    for at, piece in enumerate(pieces):
        if not words or piece.startswith(_SPACE) or _is_control(piece) or _is_control(pieces[at - 1]):
            words.append([])
        words[-1].append(at)
    found = []
    for word in words:
        parts = [at for at in word if not _is_mark(pieces[at])]
        first, last = (parts[0], parts[-1]) if parts else (word[-1] + 1, word[-1])
        found += [[at] for at in range(word[0], first)]
        found += [[*range(first, last + 1)]] if parts else []
        found += [[at] for at in range(last + 1, word[-1] + 1)]
    return found


def _is_control(piece: str) -> bool:
    return bool(_CONTROL.fullmatch(piece)) and not _BYTE.fullmatch(piece)


def _is_mark(piece: str) -> bool:
    text = piece.removeprefix(_SPACE)
    return text != "" and not any(one.isalnum() for one in text)


def _spelled(pieces: Sequence[str]) -> str:
    """The text of the pieces of a word. Bytes that make no character are shown as a replacement character."""
    parts = []
    for piece in pieces:
        byte = _BYTE.fullmatch(piece)
        parts.append(bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode())
    return b"".join(parts).decode(errors="replace").strip()


def _parts(cells: Sequence[int], width: int) -> Iterator[list[int]]:
    """The columns that are side by side."""
    part: list[int] = []
    taken = 0
    for at, cell in enumerate(cells):
        if part and taken + cell > width:
            yield part
            part, taken = [], 0
        part.append(at)
        taken += cell + _GAP
    if part:
        yield part


def _line(name: str, cells: Iterator[str]) -> str:
    return (name + " " * _GAP + (" " * _GAP).join(cells)).rstrip()


def _shade(weight: float, shades: str) -> str:
    share = weight if 0 <= weight <= 1 else float(weight > 1)  # NaN is shown as 0
    return shades[round(share * (len(shades) - 1))]


def _cut(label: str) -> str:
    """A label that changes nothing in a terminal, and is not too wide."""
    shown = "".join(one if one.isprintable() else "?" for one in label[: _LONGEST_LABEL + 1])
    if _width(shown) <= _LONGEST_LABEL:
        return shown
    while _width(shown) >= _LONGEST_LABEL:
        shown = shown[:-1]
    return shown + "…"


def _padded(label: str, width: int) -> str:
    return label + " " * (width - _width(label))


def _width(label: str) -> int:
    """The columns that a terminal gives a label."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "FW" else 1 for one in label
    )
