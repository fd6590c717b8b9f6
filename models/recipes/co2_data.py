"""Atmospheric carbon dioxide at Mauna Loa by month: Keeling and Whorf 2004, from statsmodels.

The weekly flask samples of 1958 to 2001 are averaged by month. A month without samples is interpolated linearly between
its neighbours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from statsmodels.datasets import co2

SEASON = 12
"""Months of a year."""

FloatArray = NDArray[np.float64]


def load() -> FloatArray:
    """Returns [months] parts per million; the first month is March 1958."""
    weekly = co2.load_pandas().data["co2"]
    monthly = weekly.resample("MS").mean().interpolate()
    return np.asarray(monthly, np.float64)


def seasonal_naive(history: FloatArray, horizon: int) -> FloatArray:
    """Forecasts that each month equals the same month of the last year. history: [rows, months]. Returns [rows,
    horizon]."""
    year = history[:, -SEASON:]
    return np.tile(year, (1, -(-horizon // SEASON)))[:, :horizon]


def seasonal_naive_with_drift(history: FloatArray, horizon: int) -> FloatArray:
    """As `seasonal_naive`, plus last year's gain for each year ahead."""
    gained = (history[:, -1] - history[:, -1 - SEASON])[:, None]
    years_ahead = np.arange(horizon) // SEASON + 1
    return seasonal_naive(history, horizon) + gained * years_ahead
