"""What a batch costs, by the engine's own measurements: the one place that decides where a batch runs.

Pure: times are passed in.
"""

from __future__ import annotations

from service.engine.scheduler import Batch
from service.observer import GraphKind

_WEIGHT = 0.1
"""Of a new measurement, in the exponential moving average."""


class Costs:
    """Moving averages of seconds a batch, by graph, rows and width, both in powers of two.

    A size that was not seen yet is taken to cost in proportion to the nearest smaller one that was. One thread at a
    time.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[GraphKind, int, int], float] = {}

    def record(self, kind: GraphKind, num_rows: int, width: int, seconds: float) -> None:
        """A batch of `num_rows` rows of up to `width` tokens took so long, from assembling it to its results."""
        key = (kind, _power(num_rows), _power(width))
        known = self._seconds.get(key)
        self._seconds[key] = seconds if known is None else known + _WEIGHT * (seconds - known)

    def estimate(self, kind: GraphKind, num_rows: int, width: int) -> float | None:
        """Seconds such a batch will take; None when nothing like it was ever measured."""
        rows, wide = _power(num_rows), _power(width)
        known = self._seconds.get((kind, rows, wide))
        if known is not None:
            return known
        smaller = [
            (r * w, seconds) for (k, r, w), seconds in self._seconds.items() if k == kind and r <= rows and w <= wide
        ]
        if not smaller:
            return None
        size, seconds = max(smaller)
        return seconds * (rows * wide) / size

    def is_within(self, batch: Batch, limit_s: float) -> bool:
        """Whether a batch is known to cost at most `limit_s`."""
        seconds = self.estimate(batch.kind, batch.num_rows, batch.width)
        return seconds is not None and seconds <= limit_s


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
