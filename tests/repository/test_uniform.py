"""Rows are grouped by the bits of the values that a run of the graph takes only once."""

from __future__ import annotations

import numpy as np

from service.repository.uniform import groups_of


def test_rows_with_one_value_are_not_grouped() -> None:
    assert groups_of([(np.full((4, 2), 3, np.int64), 0)], 4) == []
    assert groups_of([(np.array([1.0, 1.0, 2.0]), 0)], 2) == [], "rows past the count are padding"


def test_rows_are_grouped_by_the_bits_of_all_values() -> None:
    languages, rates = np.array([1, 2, 1, 1]), np.array([[8.0, 8.0, 8.0, 16.0]])
    assert groups_of([(languages, 0), (rates, 1)], 4) == [[0, 2], [1], [3]]


def test_nan_counts_as_one_value() -> None:
    assert groups_of([(np.array([np.nan, np.nan]), 0)], 2) == []
    assert groups_of([(np.array([0.0, -0.0]), 0)], 2) == [[0], [1]], "the model may divide by it"
