"""Draws attention as text: the source across, the target down, darker where a weight is larger. Pure.

1. A cell is as wide as the label above it. Its shade is the weight, rounded to the nearest of the shades.
2. If the labels together are wider than a line may be, the picture is drawn in parts, one below the other. Each part
   has all rows.
3. Pieces are combined to words: weights are summed over the pieces of a source word, and averaged over the pieces of a
   target word. The sum of a row stays 1. Punctuation marks are separate words, so that they do not blur their
   neighbours.

Does not need the extra `cli`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BLOCKS, ASCII = " ░▒▓█", " .:*#"
"""Shades for weights from 0 to 1."""

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""The character with which SentencePiece begins words."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_CONTROL = re.compile(r"</?\w+>")
_LONGEST_LABEL = 24
_LEAST_CELL = 2
_GAP = 1


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of a model before each token. source: [S] labels of what it read. target: [T] labels of the tokens
    that it chose. weights: [T, S], 0 to 1; the sum of a row is 1."""

    source: Sequence[str]
    target: Sequence[str]
    weights: Sequence[Sequence[float]]

    def of_words(self) -> Attention:
        """Returns the attention over words, for source and target in SentencePiece pieces."""
        read, given = _words(self.source), _words(self.target)
        rows = [[sum(row[at] for at in word) for word in read] for row in self.weights]
        return Attention(
            [_spelled([self.source[at] for at in word]) for word in read],
            [_spelled([self.target[at] for at in word]) for word in given],
            [[sum(column) / len(word) for column in zip(*(rows[at] for at in word), strict=True)] for word in given],
        )


def shades_in(encoding: str | None) -> str:
    """Returns the shades that a text in this encoding can have: `BLOCKS`, or else `ASCII`."""
    try:
        BLOCKS.encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return ASCII
    return BLOCKS


def drawn(attention: Attention, *, width: int, shades: str = BLOCKS) -> list[str]:
    """Returns the lines of the picture; the last one explains the shades. width: the most columns of a line, unless one
    label needs more."""
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
    """Returns, for each word, the places of its pieces. Marks around a word, and control pieces, are separate words."""
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
    """Returns the text of a word's pieces. Bytes that are not valid UTF-8 become a replacement character."""
    parts = []
    for piece in pieces:
        byte = _BYTE.fullmatch(piece)
        parts.append(bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode())
    return b"".join(parts).decode(errors="replace").strip()


def _parts(cells: Sequence[int], width: int) -> Iterator[list[int]]:
    """Yields the columns of each part of the picture."""
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
    """Returns a label without unprintable characters, shortened to the widest allowed."""
    shown = "".join(one if one.isprintable() else "?" for one in label[: _LONGEST_LABEL + 1])
    if _width(shown) <= _LONGEST_LABEL:
        return shown
    while _width(shown) >= _LONGEST_LABEL:
        shown = shown[:-1]
    return shown + "…"


def _padded(label: str, width: int) -> str:
    return label + " " * (width - _width(label))


def _width(label: str) -> int:
    """The width of a label in terminal columns."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "FW" else 1 for one in label
    )
