"""Lays out rows as lines of text. Pure: the caller gives the width.

1. Without a width, each row is one line of any length, so that `grep`, `cut` and `awk` find whole names.
2. A table that is wider than the terminal wraps its cells, only between words.
3. A table whose words are wider than the terminal becomes a list: one line for each cell, after the name of its column.
4. No word is ever split: a word that is wider than the terminal is written whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

_GAP = "  "
_EMPTY = "-"
"""Text of an empty cell in a named column, so that no field of a line is missing."""
_LEAST_TEXT = 8
"""The least width of the text beside the names in a list."""


def lines_of(columns: Sequence[str], rows: Sequence[Sequence[object]], width: int | None) -> list[str]:
    """Returns the lines of a table, the header first, or of a list, without a header.

    columns: their names; a name that ends with `#` has numbers, which are aligned right. width: the columns of the
    terminal; None without a terminal.
    """
    names = [column.rstrip("#") for column in columns]
    are_numbers = [column.endswith("#") for column in columns]
    cells = [
        [printable(str(cell)).strip() or (_EMPTY if name else "") for cell, name in zip(row, names, strict=True)]
        for row in rows
    ]
    table = [names, *cells]
    widths = [max(cell_len(row[at]) for row in table) for at in range(len(names))]
    if width is None or _total(widths) <= width:
        return [_line(row, widths, are_numbers) for row in table]
    least = [max(_longest_word(row[at]) for row in table) for at in range(len(names))]
    if _total(least) > width:
        return _list(names, cells, width)
    while _total(widths) > width:
        widest = max(range(len(widths)), key=lambda at: (widths[at] > least[at], widths[at]))
        widths[widest] -= 1
    return [line for row in table for line in _wrapped_row(row, widths, are_numbers)]


def printable(text: str) -> str:
    """Returns a text on one line that is safe for a terminal: characters that cannot be printed are escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _line(row: Sequence[str], widths: Sequence[int], are_numbers: Sequence[bool]) -> str:
    padded = []
    for cell, width, is_number in zip(row, widths, are_numbers, strict=True):
        blank = " " * (width - cell_len(cell))
        padded.append(blank + cell if is_number else cell + blank)
    return _GAP.join(padded).rstrip()


def _wrapped_row(row: Sequence[str], widths: Sequence[int], are_numbers: Sequence[bool]) -> list[str]:
    parts = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    height = max(map(len, parts))
    return [_line([part[at] if at < len(part) else "" for part in parts], widths, are_numbers) for at in range(height)]


def _wrapped(text: str, width: int) -> list[str]:
    """Wraps a text between words."""
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _list(names: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lays out rows as a list, with an empty line between two rows."""
    margin = max(map(cell_len, names)) + len(_GAP)
    room = max(_LEAST_TEXT, width - margin)
    lines: list[str] = []
    for row in rows:
        lines += [""] * bool(lines)
        for name, cell in zip(names, row, strict=True):
            if not cell:
                continue
            first, *rest = _wrapped(cell, room)
            lines.append(name + " " * (margin - cell_len(name)) + first)
            lines += [" " * margin + more for more in rest]
    return lines
