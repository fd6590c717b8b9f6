"""`Frames` cuts any number of samples into steps, in order, and loses none."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carousel import Frames

FORMS: dict[str, Any] = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "array.array": lambda numbers: array("d", numbers),
    "floats": lambda numbers: np.array(numbers, np.float32),
    "doubles": np.array,
    "integers": lambda numbers: np.array(numbers, np.int16),
    "strided": lambda numbers: np.repeat(np.array(numbers, np.float32), 2)[::2],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_samples_of_any_form_are_cut_into_steps(form: Any) -> None:
    frames = Frames(3)
    assert frames.add(form([1, 2])) == []
    assert (len(frames), frames.missing, list(frames.rest())) == (2, 1, [1, 2])
    assert [list(step) for step in frames.add(form([3, 4, 5, 6, 7]))] == [[1, 2, 3], [4, 5, 6]]
    assert (len(frames), frames.missing) == (1, 2)
    assert frames.add(form([])) == []
    assert [list(step) for step in frames.flush(fill=9)] == [[7, 9, 9]]
    assert (len(frames), frames.missing, frames.flush()) == (0, 0, [])


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), max_size=9), max_size=9), st.integers(1, 7))
def test_steps_are_the_samples_in_order_however_they_come(parts: list[list[float]], size: int) -> None:
    frames = Frames(size)
    steps = [step for part in parts for step in frames.add(part)]
    missing = frames.missing
    steps += frames.flush()
    samples = [sample for part in parts for sample in part]
    assert [number for step in steps for number in step] == samples + [0.0] * missing
    assert {len(step) for step in steps} <= {size}


@settings(max_examples=50)
@given(st.lists(st.integers(-(2**15), 2**15 - 1)), st.integers(1, 5), st.integers(1, 5))
def test_pcm_is_scaled_and_may_be_cut_within_a_sample(samples: list[int], size: int, length: int) -> None:
    data = np.array(samples, "<i2").tobytes()
    pieces = [data[begin : begin + length] for begin in range(0, len(data), length)]
    frames = Frames(size)
    found = [number for piece in pieces for step in frames.add_pcm(piece) for number in step]
    assert found + list(frames.rest()) == [sample / 32768 for sample in samples]


def test_pcm_is_taken_from_any_buffer() -> None:
    samples = np.array([-32768, 0, 16384, 32767], "<i2")
    expected = [[-1.0, 0.0, 0.5, 32767 / 32768]]
    data = samples.tobytes()
    for buffer in (data, bytearray(data), memoryview(data), samples, array("h", samples)):
        assert [list(step) for step in Frames(4).add_pcm(buffer)] == expected


def test_half_a_sample_is_dropped_by_flush() -> None:
    frames = Frames(2)
    frames.add_pcm(b"\x00\x40\x01")
    assert [list(step) for step in frames.flush()] == [[0.5, 0.0]]
    assert [list(step) for step in frames.add_pcm(b"\x00\x40\x00\x40")] == [[0.5, 0.5]]


def numbers_then_none() -> Iterator[Any]:
    yield 1.0
    yield "a"


@pytest.mark.parametrize(
    ("samples", "kind", "message"),
    [
        (b"\x00\x01", TypeError, "samples must be numbers, not bytes: add_pcm takes bytes of 16-bit PCM"),
        ("1,2", TypeError, "samples must be numbers, not str"),
        (["a"], TypeError, "must be real number"),
        (numbers_then_none(), TypeError, "must be real number"),
        (np.zeros((5, 2)), ValueError, "samples must have 1 axis, not 2: choose a channel, or average them"),
    ],
)
def test_invalid_samples_are_refused_and_change_nothing(samples: Any, kind: type[Exception], message: str) -> None:
    frames = Frames(2)
    frames.add([1])
    with pytest.raises(kind, match=message):
        frames.add(samples)
    assert list(frames.rest()) == [1]


def test_a_step_has_a_number_or_more() -> None:
    with pytest.raises(ValueError, match="size = 0 must be 1 or more"):
        Frames(0)
