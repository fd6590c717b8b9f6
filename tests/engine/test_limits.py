"""The number of tokens in a batch: as configured, or as many as the model computes in some milliseconds."""

from __future__ import annotations

import pytest

from service.engine.limits import batch_tokens, chunk_tokens


@pytest.mark.parametrize(
    ("seconds", "tokens"),
    [(None, 256), (0.0, 256), (1e-7, 2048), (1e-6, 2048), (4e-6, 1000), (1e-5, 400), (1e-4, 256), (1.0, 256)],
)
def test_a_batch_has_as_many_tokens_as_take_some_milliseconds(seconds: float | None, tokens: int) -> None:
    assert abs(batch_tokens(seconds) - tokens) <= 1


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, 32), (1e-5, 32), (5e-4, 8), (3e-3, 1), (1.0, 1)])
def test_steps_that_are_run_one_by_one_are_as_many_as_take_some_milliseconds(seconds: float, steps: int) -> None:
    assert abs(chunk_tokens(seconds, 32) - steps) <= 1
