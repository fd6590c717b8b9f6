"""Steps from lines of numbers: a sample a line, a step a line, or columns named as the inputs of a model are."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Sequence

from carousel.cli.reading import InputError
from carousel.values import ModelInfo

_SHOWN = 12
"""Columns that an error names."""
_LONGEST_NAME = 40
"""Letters of a name that an error shows."""


class HeaderError(ValueError):
    """A header does not name the numbers of a step. The text says which name is wrong or missing."""


class Columns:
    """Which columns a table must have, and in which order a model reads them."""

    def __init__(self, info: ModelInfo) -> None:
        self.model = info.model
        self.size = info.fed_size
        self.filled_in = filled_in(info)
        self.has_names = bool(info.fed)
        self.must_be_named = len(info.fed) > 1
        self._ends = [port.name for port in info.inputs if port.is_end]
        self._places: dict[str, list[int]] = {}
        self._names: list[str] = []
        for port in info.fed:
            self._places[port.name] = list(range(len(self._names), len(self._names) + port.size))
            for at in range(port.size):
                self._names.append(port.name if not port.shape else f"{port.name}[{at}]")

    @property
    def shown(self) -> str:
        """The names of all columns, or of the first ones."""
        return ",".join(self._names[:_SHOWN]) + (",..." if self.size > _SHOWN else "")

    def order(self, header: Sequence[str]) -> list[int] | None:
        """For each number of a step, its column. None: the only column has samples one after the other.

        A column is named `obs[0]`, the first number of `obs`; or `obs`, the first number that no column before has.
        Raises HeaderError for a header that does not name each number once.
        """
        if not self.has_names:
            raise HeaderError(f"{_quoted(header[0])} is not a number, and the inputs of {self.model} have no names")
        if not self.must_be_named and len(header) == 1 and header[0] in self._places:
            return None
        columns: dict[int, int] = {}
        for column, name in enumerate(header):
            place = self._place(name, columns)
            if place in columns:
                raise HeaderError(f"it names {_quoted(name)} once too often, and {self.model} reads {self.shown}")
            columns[place] = column
        missing = [name for place, name in enumerate(self._names) if place not in columns]
        if missing:
            raise HeaderError(f"it does not name {missing[0]}, and {self.model} reads {self.shown}")
        return [columns[place] for place in range(self.size)]

    def _place(self, name: str, columns: dict[int, int]) -> int:
        """The place in a step of a column of that name. columns: of the places that have one."""
        if name in self._places:
            places = self._places[name]
            return next((place for place in places if place not in columns), places[-1])
        if name in self._names:
            return self._names.index(name)
        if name.partition("[")[0] in self._ends:
            raise HeaderError(f"it names {_quoted(name)}, which the command fills in: leave that column out")
        raise HeaderError(f"it names {_quoted(name)}, and {self.model} reads {self.shown}")


class Table:
    """The numbers of lines as they come. name: of their file, for errors."""

    def __init__(self, name: str, columns: Columns) -> None:
        self._name = name
        self._columns = columns
        self._order: list[int] | None = None
        self._width = 0
        self._line = 0
        self._rest = ""

    def add(self, text: str) -> array[float]:
        """The numbers of the lines that are whole. Raises InputError, which names the line."""
        *lines, self._rest = (self._rest + text).split("\n")
        return self._numbers(lines)

    def end(self) -> array[float]:
        """Those of the last line, which need not end."""
        rest, self._rest = self._rest, ""
        return self._numbers([rest])

    def _numbers(self, lines: list[str]) -> array[float]:
        found = array("f")
        for line in lines:
            self._line += 1
            try:
                cells = [cell.strip() for row in csv.reader([line]) for cell in row]
            except csv.Error as error:
                raise self._wrong(str(error)) from None
            if cells:
                found.extend(self._row(cells))
        return found

    def _row(self, cells: list[str]) -> list[float]:
        if not self._width:
            self._width = len(cells)
            if self._is_header(cells):
                return []
        if len(cells) != self._width:
            raise self._wrong(f"it has {len(cells)} columns, and the lines before it {self._width}")
        try:
            numbers = [float(cell) for cell in cells]
        except ValueError as error:
            raise self._wrong(str(error)) from None
        return numbers if self._order is None else [numbers[column] for column in self._order]

    def _is_header(self, cells: list[str]) -> bool:
        """Learns from the first line what the columns are. Raises InputError when they do not fit the model."""
        columns = self._columns
        if not any(map(_is_number, cells)):
            try:
                self._order = columns.order(cells)
            except HeaderError as error:
                raise self._wrong(str(error)) from None
            return True
        if columns.must_be_named:
            raise self._wrong(f"it must name each number that a step of {columns.model} reads: {columns.shown}")
        if len(cells) not in (1, columns.size):
            expected = "1 number" if columns.size == 1 else f"1 number, or the {columns.size} of a step"
            raise self._wrong(
                f"it has {len(cells)} columns, and a line for {columns.model} has {expected}{columns.filled_in}"
            )
        return False

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self._name}, line {self._line}: {what}")


def filled_in(info: ModelInfo) -> str:
    """The end of an error about the size of a step: which inputs the command fills in, if there are any."""
    ends = [port.name for port in info.inputs if port.is_end]
    return f": the command fills in {', '.join(ends)}" if ends else ""


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _quoted(name: str) -> str:
    return repr(name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "...")
