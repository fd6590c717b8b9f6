"""Estimated costs of batches: for measured sizes, sizes between them, and sizes that were never measured."""

from __future__ import annotations

import pytest

from service.engine.scheduler import Costs


def test_a_size_never_measured_is_not_known_and_not_small() -> None:
    assert Costs().estimate("step", 4, 1) is None


def test_a_measured_size_costs_what_was_measured_and_new_measurements_move_it_slowly() -> None:
    costs = Costs()
    costs.record("step", 4, 1, 1.0)
    assert costs.estimate("step", 4, 1) == 1.0
    assert costs.estimate("step", 3, 1) == 1.0  # the same power of two
    costs.record("step", 4, 1, 2.0)
    assert costs.estimate("step", 4, 1) == pytest.approx(1.1)
    for _ in range(200):
        costs.record("step", 4, 1, 2.0)
    assert costs.estimate("step", 4, 1) == pytest.approx(2.0)


def test_a_larger_size_costs_in_proportion_to_the_nearest_smaller_one_of_its_graph() -> None:
    costs = Costs()
    costs.record("step", 1, 1, 0.5)
    costs.record("step", 8, 1, 1.0)
    costs.record("encoder", 16, 1, 9.0)
    assert costs.estimate("step", 16, 4) == pytest.approx(8.0)
    assert costs.estimate("step", 2, 1) == pytest.approx(1.0)
    assert costs.estimate("encoder", 8, 1) is None
