"""Steps from lines of numbers: a sample a line, a step a line, or columns named as the inputs of a model are."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Sequence

from carousel.cli.reading import InputError
from carousel.values import Port

_SHOWN = 12
"""Columns that an error names."""


class Columns:
    """Which columns a table must have, and in which order a model reads them."""

    def __init__(self, model: str, inputs: Sequence[Port], size: int) -> None:
        """inputs: the named parts of a step, none where they have no names; size: the numbers of a step."""
        self.model = model
        self.size = size
        self.must_be_named = len(inputs) > 1
        self._places: dict[str, list[int]] = {}
        self.names: list[str] = []
        for port in inputs:
            self._places[port.name] = list(range(len(self.names), len(self.names) + port.size))
            for at in range(port.size):
                self.names.append(port.name if not port.shape else f"{port.name}[{at}]")

    def order(self, header: Sequence[str]) -> list[int] | None:
        """For each number of a step, its column. None for a header that does not name each of them once.

        A column is named `obs[0]`, the first number of `obs`; or `obs`, the first number that no column before has.
        """
        columns: dict[int, int] = {}
        for column, name in enumerate(header):
            if name in self._places:
                free = [place for place in self._places[name] if place not in columns]
            else:
                free = [self.names.index(name)] if name in self.names else []
            if not free or free[0] in columns:
                return None
            columns[free[0]] = column
        return [columns[place] for place in range(self.size)] if len(columns) == self.size else None


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
        self._order = columns.order(cells)
        if self._order is not None:
            return True
        if columns.must_be_named:
            shown = ",".join(columns.names[:_SHOWN]) + (",..." if columns.size > _SHOWN else "")
            raise self._wrong(f"it must name each number that a step of {columns.model} reads: {shown}")
        if len(cells) not in (1, columns.size):
            expected = "1 number" if columns.size == 1 else f"1 number, or the {columns.size} of a step"
            raise self._wrong(f"it has {len(cells)} columns, and a line for {columns.model} has {expected}")
        return False

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self._name}, line {self._line}: {what}")
