"""Arrays are copied into messages bit by bit; large arrays without one Python object for each number."""

from __future__ import annotations

import time

import numpy as np
import pytest

from carousel.v1 import inference_pb2 as pb
from service.api import tensors


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 100_000])
@pytest.mark.parametrize("name", ["logits", "values"])
def test_numbers_in_a_message_are_those_of_the_array(name: str, count: int) -> None:
    array = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    array[:3] = [np.inf, -0.0, 1e-40][:count]
    message = pb.StepOutput(position=7, tokens=[pb.Token(id=3)])
    tensors.extend_floats(message, name, array)
    expected = pb.StepOutput(position=7, tokens=[pb.Token(id=3)])
    getattr(expected, name).extend(array.tolist())
    assert message.SerializeToString() == expected.SerializeToString()


def test_an_array_of_rows_goes_in_row_by_row() -> None:
    array = np.arange(600, dtype=np.float32).reshape(20, 30)
    message = pb.BatchStepped()
    tensors.packed_floats(message, pb.BatchStepped.LOGITS_FIELD_NUMBER, array[::2])
    assert list(message.logits) == array[::2].ravel().tolist()


def test_a_large_array_makes_no_object_for_each_number() -> None:
    array = np.zeros(1_000_000, np.float32)
    took = []
    for extend in (
        lambda message: tensors.extend_floats(message, "logits", array),
        lambda message: message.logits.extend(array.tolist()),
    ):
        message = pb.StepOutput()
        began = time.perf_counter()
        extend(message)
        took.append(time.perf_counter() - began)
        assert len(message.logits) == len(array)
    assert took[0] < took[1] / 3
