"""Feature vectors in the forms that programs use become messages, and messages become values again."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from carousel import InvalidArgumentError, Port
from carousel._ports import joined_parts
from carousel._requests import feed_message, sequence_message, step_batch_message
from carousel._tensors import Features, pieces, steps_message, tensor_message, tensor_of, vectors

ROWS = [(1.0, 2.5), (-3.0, 0.0), (4.0, 1e-3)]
ARRAY = np.array(ROWS, np.float32)


@pytest.mark.parametrize(
    "features",
    [
        ROWS,
        [list(row) for row in ROWS],
        tuple(ROWS),
        ARRAY,
        list(ARRAY),
        ARRAY.astype(np.float64),
        np.asfortranarray(ARRAY),
        np.repeat(ARRAY, 2, axis=0)[::2],
    ],
    ids=["tuples", "lists", "tuple", "array", "list of arrays", "doubles", "fortran", "strided"],
)
def test_vectors_of_any_form_are_one_tensor(features: Features) -> None:
    message = tensor_message(features, "feed.features")
    assert list(message.shape) == [3, 2]
    assert message.data == ARRAY.astype("<f4").tobytes()
    assert vectors(message) == [tuple(row) for row in ARRAY.tolist()]
    assert tensor_of(pieces(message)) == message


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([[1.0], [1.0, 2.0]], "rows of one length"),
        ([1.0, [2.0]], "rows of numbers"),
        ("ab", "rows of numbers"),
        (b"abcd", "numbers, not b'abcd'"),
        ([["a"]], "rows of numbers"),
        (np.zeros(()), "1 axis or 2, not 0"),
        (np.zeros((1, 2, 3)), "1 axis or 2, not 3"),
    ],
)
def test_features_that_are_not_a_table_of_numbers_are_refused(features: Features, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"feed.features must be vectors, one a step.*{message}") as refusal:
        tensor_message(features, "feed.features")
    assert refusal.value.field == "feed.features"


@pytest.mark.parametrize(
    ("features", "place"),
    [
        ([[1.0, 2.0], [3.0, -1e39]], "[1][1] = -1e+39"),
        (np.array([[1.0], [1e300]]), "[1][0] = 1e+300"),
        ([0.0, 10**39], "[1] = 1000"),
        (iter([iter([1e39])]), "[0][0] = 1e+39"),
    ],
    ids=["rows", "array", "numbers", "iterators"],
)
def test_numbers_beyond_32_bit_floats_are_refused(features: Features, place: str) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        tensor_message(features, "feed.features")
    assert refusal.value.message.startswith(f"feed.features{place}")
    assert refusal.value.message.endswith("must be in the range of 32-bit floats")
    assert refusal.value.field == f"feed.features{place.partition(' ')[0]}"


def test_numbers_of_a_named_part_beyond_32_bit_floats_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^feed.features\['x'\]\[1\] = 1e\+39 must be in the range"):
        joined_parts({"x": [[0.0], [1e39]]}, [Port("x", "float32", (1,), is_end=False)], "feed.features")


def test_infinity_and_nan_are_sent() -> None:
    numbers = [float("inf"), float("-inf"), float("nan"), 3.4e38]
    message = tensor_message([numbers], "feed.features")
    assert message.data == np.array(numbers, "<f4").tobytes()
    assert tensor_message(numbers, "feed.features").data == message.data


FLAT = [1.0, 2.5, -3.0, 0.0, 4.0, 1e-3]


@pytest.mark.parametrize(
    "numbers",
    [
        FLAT,
        tuple(FLAT),
        array("d", FLAT),
        np.array(FLAT, np.float32),
        np.array(FLAT),
        list(np.array(FLAT, np.float32)),
        np.repeat(np.array(FLAT, np.float32), 2)[::2],
    ],
    ids=["list", "tuple", "array.array", "floats", "doubles", "list of floats", "strided"],
)
def test_numbers_one_after_the_other_are_steps(numbers: Features) -> None:
    """Each step takes as many numbers as the model reads. If that is unknown, all numbers are one step."""
    assert steps_message(numbers, 2, "feed.features") == tensor_message(ROWS, "feed.features")
    assert list(steps_message(numbers, 6, "feed.features").shape) == [1, 6]
    assert list(steps_message(numbers, 0, "feed.features").shape) == [1, 6]
    assert list(tensor_message(numbers, "source").shape) == [6]


def test_rows_are_steps_whatever_a_step_reads() -> None:
    """The server refuses rows of a wrong length."""
    assert list(steps_message(ROWS, 6, "feed.features").shape) == [3, 2]


@pytest.mark.parametrize(
    ("size", "message"),
    [(4, "each step reads 4: 2 are missing for 2 steps"), (7, "each step reads 7: 1 is missing for 1 step")],
)
def test_numbers_that_do_not_fill_a_step_are_refused(size: int, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^feed.features has 6 numbers, but {message} \(`carousel.Frames`"):
        steps_message(FLAT, size, "feed.features")


def test_an_empty_list_of_numbers_has_no_steps() -> None:
    assert list(steps_message(np.zeros(0, np.float32), 4, "feed.features").shape) == [0, 4]
    assert list(steps_message(np.zeros(0), 0, "feed.features").shape) == [0, 0]


def test_the_type_of_a_source_decides_its_form() -> None:
    assert sequence_message("ab", "source").text == "ab"
    assert list(sequence_message(["a", "b"], "source").tokens.names) == ["a", "b"]
    assert list(sequence_message([1, 2], "source").ids.ids) == [1, 2]
    assert list(sequence_message(np.array([1, 2]), "source").ids.ids) == [1, 2]
    for numbers in (FLAT, np.array(FLAT), np.array(FLAT, np.float32)):
        assert list(sequence_message(numbers, "source").features.shape) == [6]
    for features in (ROWS, ARRAY):
        assert list(sequence_message(features, "source").features.shape) == [3, 2]


def test_a_feed_has_tokens_or_features() -> None:
    options = {"top_k": None, "logits": False, "outputs": True, "every_position": False}
    for tokens, features in ((None, None), (["a"], ROWS)):
        with pytest.raises(TypeError):
            feed_message(tokens, features=features, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"give tokens or features$"):
        step_batch_message([1], None, [0], top_k=None, logits=False, outputs=True)
