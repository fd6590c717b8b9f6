"""Makes steps from lines of numbers: one sample a line, one step a line, or columns named after the model's inputs."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Sequence

from carousel.cli.reading import InputError
from carousel.values import ModelInfo

_SHOWN = 12
"""The most columns that an error names."""
_LONGEST_NAME = 40
"""The most letters of a name in an error."""


class HeaderError(ValueError):
    """A header does not name each number of a step. The text says which name is wrong or missing."""


class Columns:
    """The columns that a table must have, and the order in which the model reads them."""

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
        """The names of all columns, or of the first ones if there are many."""
        return ",".join(self._names[:_SHOWN]) + (",..." if self.size > _SHOWN else "")

    def order(self, header: Sequence[str]) -> list[int] | None:
        """Returns the column of each number of a step. None if the only column has samples one after the other.

        A column named `obs[0]` is the first number of `obs`. A column named `obs` is the first number of `obs` that no
        earlier column has. Raises HeaderError unless the header names each number once.
        """
        if not self.has_names:
            raise HeaderError(f"{_quoted(header[0])} is not a number, and the inputs of {self.model} have no names")
        if not self.must_be_named and len(header) == 1 and header[0] in self._places:
            return None
        columns: dict[int, int] = {}
        for column, name in enumerate(header):
            place = self._place(name, columns)
            if place in columns:
                raise HeaderError(f"it names {_quoted(name)} too often: {self.model} reads {self.shown}")
            columns[place] = column
        missing = [name for place, name in enumerate(self._names) if place not in columns]
        if missing:
            raise HeaderError(f"it does not name {missing[0]}: {self.model} reads {self.shown}")
        return [columns[place] for place in range(self.size)]

    def _place(self, name: str, columns: dict[int, int]) -> int:
        """Returns the place in a step for a column of this name. columns: the places that already have a column."""
        if name in self._places:
            places = self._places[name]
            return next((place for place in places if place not in columns), places[-1])
        if name in self._names:
            return self._names.index(name)
        if name.partition("[")[0] in self._ends:
            raise HeaderError(f"it names {_quoted(name)}, which the command fills in: leave that column out")
        raise HeaderError(f"it names {_quoted(name)}, but {self.model} reads {self.shown}")


class Table:
    """Reads the numbers of lines as they arrive. name: the file's, for errors."""

    def __init__(self, name: str, columns: Columns) -> None:
        self._name = name
        self._columns = columns
        self._order: list[int] | None = None
        self._width = 0
        self._line = 0
        self._rest = ""

    def add(self, text: str) -> array[float]:
        """Returns the numbers of the complete lines. Raises InputError that names the line."""
        *lines, self._rest = (self._rest + text).split("\n")
        return self._numbers(lines)

    def end(self) -> array[float]:
        """Returns the numbers of the last line, which may lack a line end."""
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
            raise self._wrong(f"it has {len(cells)} columns, but the lines before it have {self._width}")
        try:
            numbers = [float(cell) for cell in cells]
        except ValueError as error:
            raise self._wrong(str(error)) from None
        return numbers if self._order is None else [numbers[column] for column in self._order]

    def _is_header(self, cells: list[str]) -> bool:
        """Whether the first line is a header. Learns the columns from it. Raises InputError if they do not fit."""
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
                f"it has {len(cells)} columns, but a line for {columns.model} has {expected}{columns.filled_in}"
            )
        return False

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self._name}, line {self._line}: {what}")


def filled_in(info: ModelInfo) -> str:
    """Returns the end of an error about a step's size: which inputs the command fills in, if any."""
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
