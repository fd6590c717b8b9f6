"""The random inputs with which `carousel bench` feeds a model that has named inputs."""

from __future__ import annotations

import random
from dataclasses import replace

from carousel import Port
from carousel.cli.bench import random_step
from tests.cli.test_samples import INFO

INPUTS = (
    Port("x", "float32", (2,)),
    Port("count", "int64", (3,)),
    Port("is_on", "bool", ()),
    Port("half", "float16", (1,)),
    Port("is_last", "bool", (), is_end=True),
)


def test_random_steps_fit_each_inputs_type() -> None:
    """Integer inputs get integers, and no step sets the input that ends the session."""
    info = replace(INFO, feature_size=8, inputs=INPUTS)
    steps = [random_step(random.Random(seed), info) for seed in range(50)]
    places = list(zip(*steps, strict=True))
    assert len(places) == info.feature_size
    assert set(places[7]) == {0.0}
    for place in places[2:6]:
        assert set(place) == {0.0, 1.0}
    for place in (*places[:2], places[6]):
        assert len(set(place)) == 50


def test_steps_without_names_are_real_numbers() -> None:
    assert len(set(random_step(random.Random(1), INFO))) == INFO.feature_size
