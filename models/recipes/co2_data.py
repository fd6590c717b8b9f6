"""Atmospheric carbon dioxide at Mauna Loa, month by month: Keeling and Whorf 2004, as statsmodels ships it.

The weekly flask samples of 1958 to 2001 are averaged by month; a month without samples lies on the line between its
neighbours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from statsmodels.datasets import co2

SEASON = 12
"""Months of a year."""

FloatArray = NDArray[np.float64]


def load() -> FloatArray:
    """[months] parts per million, the first being March 1958."""
    weekly = co2.load_pandas().data["co2"]
    monthly = weekly.resample("MS").mean().interpolate()
    return np.asarray(monthly, np.float64)


def seasonal_naive(history: FloatArray, horizon: int) -> FloatArray:
    """history: [rows, months]. The forecast that every month is as it was a year before: [rows, horizon]."""
    year = history[:, -SEASON:]
    return np.tile(year, (1, -(-horizon // SEASON)))[:, :horizon]


def seasonal_naive_with_drift(history: FloatArray, horizon: int) -> FloatArray:
    """As `seasonal_naive`, with what the same month has gained in the year before added for every year ahead."""
    gained = (history[:, -1] - history[:, -1 - SEASON])[:, None]
    years_ahead = np.arange(horizon) // SEASON + 1
    return seasonal_naive(history, horizon) + gained * years_ahead
