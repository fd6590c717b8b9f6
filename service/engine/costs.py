"""Estimates what a batch costs, from measurements. Knows no clock."""

from __future__ import annotations

from service.observer import GraphKind

_WEIGHT = 0.1
"""Weight of a new measurement in the exponential moving average of a batch's cost."""


class Costs:
    """Moving averages of the seconds that a batch takes, by graph, rows and width, the last two in powers of two.

    The engine uses them to decide where a batch runs. For a size without measurement, the estimate is proportional to
    the nearest smaller size with one. Times are passed in. For one thread at a time.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[GraphKind, int, int], float] = {}

    def record(self, kind: GraphKind, num_rows: int, width: int, seconds: float) -> None:
        """Records that a batch of `num_rows` rows of up to `width` tokens took `seconds`, from assembly to commit."""
        key = (kind, (num_rows - 1).bit_length(), (width - 1).bit_length())
        known = self._seconds.get(key)
        self._seconds[key] = seconds if known is None else known + _WEIGHT * (seconds - known)

    def estimate(self, kind: GraphKind, num_rows: int, width: int) -> float | None:
        """Returns the expected seconds of such a batch; None when neither it nor a smaller one was ever measured."""
        rows, wide = (num_rows - 1).bit_length(), (width - 1).bit_length()
        known = self._seconds.get((kind, rows, wide))
        if known is not None:
            return known
        smaller = [
            (r + w, seconds) for (k, r, w), seconds in self._seconds.items() if k == kind and r <= rows and w <= wide
        ]
        if not smaller:
            return None
        size, seconds = max(smaller)
        return seconds * 2.0 ** (rows + wide - size)
