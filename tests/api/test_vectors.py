"""Feature vectors from tensors of the wire, with two axes or with one axis that holds step after step."""

from __future__ import annotations

import numpy as np
import pytest

from carousel.v1 import inference_pb2 as pb
from service.api.vectors import items_of
from service.errors import EmptySequenceError, InvalidFieldError, SequenceTooLongError

SIZE = 4


def flat(count: int) -> pb.Tensor:
    return pb.Tensor(shape=[count], data=np.arange(count, dtype="<f4").tobytes())


def test_vectors_are_refused_by_their_shape_before_they_are_cut() -> None:
    size, steps = 4, 250_000
    message = pb.Tensor(shape=[steps, size], data=bytes(4 * steps * size))
    with pytest.raises(
        SequenceTooLongError, match=r"^feed\.features has 250000 vectors, the limit is 10 \(max_feed_tokens\)$"
    ):
        items_of(message, size, "vad", field="feed.features", limit=10)
    assert len(items_of(message, size, "vad", field="feed.features", limit=steps)) == steps
    with pytest.raises(InvalidFieldError, match=r"^f\.shape = of 1000000 axes must be \[steps, 4\]$"):
        items_of(pb.Tensor(shape=[1] * 1_000_000), size, "vad", field="f")
    with pytest.raises(EmptySequenceError):
        items_of(pb.Tensor(shape=[0, size]), size, "vad", field="f", limit=10)


@pytest.mark.parametrize("steps", [1, 3])
def test_numbers_of_one_axis_are_steps_one_after_the_other(steps: int) -> None:
    message = flat(SIZE * steps)
    rows = pb.Tensor(shape=[steps, SIZE], data=message.data)
    assert items_of(message, SIZE, "vad", field="f") == items_of(rows, SIZE, "vad", field="f")
    assert len(items_of(message, SIZE, "vad", field="f", limit=steps)) == steps


@pytest.mark.parametrize(
    ("count", "size", "message"),
    [
        (1000, 512, "feed.features has 1000 numbers, but each step of vad reads 512: 24 are missing for 2 steps"),
        (511, 512, "feed.features has 511 numbers, but each step of vad reads 512: 1 is missing for 1 step"),
        (1025, 512, "feed.features has 1025 numbers, but each step of vad reads 512: 511 are missing for 3 steps"),
    ],
)
def test_numbers_that_do_not_fill_a_step_are_refused_with_how_many_are_missing(
    count: int, size: int, message: str
) -> None:
    with pytest.raises(InvalidFieldError) as refusal:
        items_of(flat(count), size, "vad", field="feed.features")
    assert (refusal.value.message, refusal.value.field) == (message, "feed.features")


def test_numbers_of_one_axis_keep_the_limits_of_vectors() -> None:
    with pytest.raises(SequenceTooLongError, match=r"^f has 250000 vectors, the limit is 10 \(max_feed_tokens\)$"):
        items_of(pb.Tensor(shape=[1_000_000]), SIZE, "vad", field="f", limit=10)
    with pytest.raises(EmptySequenceError):
        items_of(pb.Tensor(shape=[0]), SIZE, "vad", field="f", limit=10)
    with pytest.raises(InvalidFieldError, match=r"^f\.data has 4 bytes, and shape \[4\] of 32-bit floats needs 16$"):
        items_of(pb.Tensor(shape=[4], data=bytes(4)), SIZE, "vad", field="f")
