"""What the package gives a program: its public names, errors and values."""

from __future__ import annotations

import copy
import pickle
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

import carousel
from carousel import (
    CarouselError,
    PositionMismatchError,
    ResourceExhaustedError,
    SessionClosedError,
    Token,
    ValueToken,
    _answers,
)
from carousel import errors as errors_module
from carousel._session_errors import session_closed
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb

ROOT = Path(__file__).parents[2]


def all_errors(root: type[CarouselError] = CarouselError) -> list[type[CarouselError]]:
    return [root] + [leaf for kind in root.__subclasses__() for leaf in all_errors(kind)]


def test_the_public_names_are_sorted_and_all_there() -> None:
    assert carousel.__all__ == sorted(carousel.__all__)
    public = {n for n, v in vars(carousel).items() if isinstance(v, type) and not n.startswith("_")}
    assert public == set(carousel.__all__)


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    assert errors_module.__doc__ is not None
    drawn = [word for word in errors_module.__doc__.split() if word.endswith("Error")][: len(all_errors())]
    assert sorted(drawn) == sorted(kind.__name__ for kind in all_errors())


@pytest.mark.parametrize("kind", all_errors())
def test_errors_survive_pickling_and_copying(kind: type[CarouselError]) -> None:
    facts = {"position": "3", "close_reason": "idle"}
    error = kind("m", reason="R", field="f", metadata=facts, retry_delay=timedelta(seconds=1))
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert vars(again) == vars(error)
        assert (str(again), again.code) == ("m [R]", kind.code)
    if isinstance(error, PositionMismatchError):
        assert error.expected_position == 3
    if isinstance(error, SessionClosedError):
        assert (error.position, error.close_reason) == (3, carousel.CloseReason.IDLE)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_becomes_an_error_that_has_it(code: grpc.StatusCode) -> None:
    error = _answers.error(error_pb2.Error(code=code.value[0], message="m"))
    assert error.code is code
    assert type(error).code in {code, grpc.StatusCode.UNKNOWN}
    assert error.retry_delay is None
    assert str(error) == "m"


def test_a_code_that_nobody_knows_is_unknown() -> None:
    assert _answers.error(error_pb2.Error(code=99)).code is grpc.StatusCode.UNKNOWN


def test_an_error_keeps_what_the_server_sent() -> None:
    message = error_pb2.Error(code=8, message="full", reason="QUEUE_FULL", field="feed", metadata={"limit": "4"})
    message.retry_delay.FromMilliseconds(250)
    error = _answers.error(message)
    assert isinstance(error, ResourceExhaustedError)
    assert (error.field, error.metadata, error.retry_delay) == ("feed", {"limit": "4"}, timedelta(milliseconds=250))


def test_values_of_enums_that_are_newer_than_the_client_are_unspecified() -> None:
    assert _answers.close_reason(99) is carousel.CloseReason.UNSPECIFIED
    assert _answers.close_reason(pb.CLOSE_REASON_SHUTDOWN) is carousel.CloseReason.SHUTDOWN


def test_old_names_still_work_and_warn() -> None:
    with pytest.warns(DeprecationWarning, match=r"carousel\.BatchStep is now carousel\.StepBatchResult"):
        assert carousel.BatchStep is carousel.StepBatchResult
    with pytest.raises(AttributeError, match="Nothing"):
        _ = carousel.Nothing


def test_a_value_token_is_a_token_and_a_tuple_of_values() -> None:
    token = ValueToken((1.5, -2.0))
    assert isinstance(token, Token)
    assert (token.id, token.text, token.log_probability, token.values) == (0, "1.5 -2", None, (1.5, -2.0))
    first, second = token
    assert (first, second, token[1], token[:1], len(token)) == (1.5, -2.0, -2.0, (1.5,), 2)
    assert token == (1.5, -2.0) == token
    assert token == ValueToken((1.5, -2.0)) != ValueToken((1.5,))
    assert token != Token(0, "1.5 -2")
    assert hash(token) == hash((1.5, -2.0))
    assert pickle.loads(pickle.dumps(token)) == copy.copy(token) == token
    assert repr(token) == "ValueToken((1.5, -2.0))"


def test_every_reason_why_a_session_ends_is_told_in_words() -> None:
    for value in carousel.CloseReason:
        error = session_closed("s", value, 3)
        assert error.close_reason is value
        assert error.message.startswith(f"session 's' was closed ({value}) at position 3: ")
    aged = session_closed("s", carousel.CloseReason.MAX_AGE, 3)
    assert aged.message.endswith("at position 3: it reached the age that the server allows")
