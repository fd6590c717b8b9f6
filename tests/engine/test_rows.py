"""Rows with different numbers of steps, on a graph that runs one step at a time: each row has the result that it has
alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.engine.results import LOGITS, StepResult
from service.engine.rows import bucket, run_steps

UNITS, READ = 3, 2


def run(tokens: Any, lengths: Any, states: Any, contexts: Any, fetch: Any, *, count: int) -> Any:
    """Steps each row once. Its states are a decaying sum, with rows on the second axis, and a count of the steps."""
    assert tokens.shape[1] == 1
    assert fetch is LOGITS
    assert (list(contexts), count) == ([], min(count, len(tokens)))
    total, steps = states
    total = total * 0.5 + tokens[:, 0].sum(axis=1)
    steps = steps + 1
    logits = np.stack([total[0], steps[:, 0].astype(np.float32)], axis=1)
    return StepResult(logits[:, np.newaxis].astype(np.float32), gives_values=True), [total, steps]


@pytest.mark.parametrize("lengths", [[1], [4], [3, 3], [1, 5, 2], [4, 4, 4, 1, 2], [7, 1, 1, 1, 1, 1]])
def test_each_row_has_the_result_that_it_has_alone(lengths: list[int]) -> None:
    generator = np.random.default_rng(len(lengths))
    count, size = len(lengths), bucket(len(lengths))
    tokens = generator.standard_normal((size, max(lengths), READ)).astype(np.float32)
    states: list[Any] = [generator.standard_normal((UNITS, size)).astype(np.float32), np.arange(size)[:, np.newaxis]]
    before = [state.copy() for state in states]
    padded = np.array(lengths + [1] * (size - count))
    found, after = run_steps(run, tokens, padded, states, [], axes=[1, 0], fetch=LOGITS, count=count)
    assert found.gives_values
    assert found.logits is not None
    assert all(np.array_equal(*pair) for pair in zip(states, before, strict=True)), "what it was given is another's"
    for row, length in enumerate(lengths):
        own = [states[0][:, row : row + 1], states[1][row : row + 1]]
        for at in range(length):
            alone, own = run(tokens[row : row + 1, at : at + 1], None, own, [], LOGITS, count=1)
            assert np.array_equal(found.logits[row, at], alone.logits[0, 0])
        assert np.array_equal(after[0][:, row : row + 1], own[0])
        assert np.array_equal(after[1][row : row + 1], own[1])
