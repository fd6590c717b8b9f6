"""Large responses are made in slices. They equal responses made at once, and the event loop runs other tasks in
between."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from carousel.v1 import inference_pb2 as pb
from service.api import answers, convert
from service.api.refusals import refused
from service.api.token_answer import TokenAnswer
from service.engine.beam import Hypothesis
from service.engine.decoding import FinishReason
from service.engine.results import Fed, Searched, StepOutput, Stepped
from service.errors import CarouselError, InvalidFieldError
from service.repository.vocabulary import Vocabulary
from service.sessions.request import Request
from service.sessions.served import Served
from tests import domain
from tests.waiting import turns

NAMES = tuple(f"token-{number}" for number in range(50))
BUNDLE = replace(
    domain.bundle(),
    target_vocabulary=Vocabulary(NAMES, owner="the target vocabulary", tokenizer="whitespace", lowercase=False),
)

RNG = np.random.default_rng(3)


def request() -> Request:
    session = domain.session()
    session.served = Served(BUNDLE, session.served.engine)
    return Request(session, 7, lambda request, result: None, 0.0)


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


async def made(make: Coroutine[Any, Any, pb.StreamResponse]) -> tuple[pb.StreamResponse, int]:
    """Returns a response, and how many turns the event loop had while the response was made."""
    num_turns = 0

    async def count() -> None:
        nonlocal num_turns
        while True:
            await turns()
            num_turns += 1

    counting = asyncio.create_task(count())
    response = await make
    counting.cancel()
    return response, num_turns


OUTPUTS = {
    "logits": [StepOutput(at, [], None, floats(50)) for at in range(2000)],
    "traces": [StepOutput(at, [], None, floats(50), {"a": floats(300), "b": floats(3)}) for at in range(800)],
    "top-k": [StepOutput(at, list(range(50)), floats(50).tolist()) for at in range(300)],
    "one output of many tokens": [StepOutput(3, [at % 50 for at in range(9000)], floats(9000).tolist())],
    "tokens alone": [StepOutput(at, [at % 50]) for at in range(9000)],
}


@pytest.mark.parametrize("kind", OUTPUTS)
async def test_a_large_fed_is_made_in_slices_and_equal(kind: str) -> None:
    one, result = request(), Fed(9000, OUTPUTS[kind])
    response, num_turns = await made(answers.large_fed(one, result))
    assert response == answers.fed(one, result)
    assert num_turns > 5


ONE_TOKEN = [StepOutput(9, [3])]
OTHERS = {
    "none": [],
    "two outputs": ONE_TOKEN * 2,
    "two tokens": [StepOutput(9, [3, 4])],
    "a log-probability": [StepOutput(9, [3], [-0.5])],
    "logits": [StepOutput(9, [3], None, floats(50))],
    "a trace": [StepOutput(9, [3], None, None, {"a": floats(3)})],
}


def test_a_reused_token_response_is_equal_to_a_new_one() -> None:
    made = TokenAnswer()
    for position in (300, 0, 2):
        one, result = request(), Fed(position, [StepOutput(position, [position % 50])])
        one.request_id = position
        filled = made.of(one, result)
        assert filled is not None
        assert filled.SerializeToString() == answers.fed(one, result).SerializeToString()


@pytest.mark.parametrize("kind", OTHERS)
def test_a_token_response_has_exactly_one_token(kind: str) -> None:
    assert TokenAnswer().of(request(), Fed(9, OTHERS[kind])) is None


def test_replays_stored_sessions_and_values_get_no_token_response() -> None:
    retry, stored, of_numbers = request(), request(), request()
    retry.replayed = True
    stored.session.own_persistence()
    of_numbers.session.served.bundle = replace(BUNDLE, target_vocabulary=None)
    for one in (retry, stored, of_numbers):
        assert TokenAnswer().of(one, Fed(9, ONE_TOKEN)) is None


async def test_a_large_opened_is_made_in_slices_and_equal() -> None:
    one, result = request(), Fed(0, OUTPUTS["one output of many tokens"])
    response, num_turns = await made(answers.large_opened(one, result, None))
    assert response == answers.opened(one, result, None)
    assert num_turns > 5


async def test_the_results_of_a_search_have_all_their_tokens() -> None:
    ends = [FinishReason.EOS, FinishReason.MAX_TOKENS, FinishReason.EOS]
    hypotheses = []
    for size, end in zip((4500, 2000, 0), ends, strict=True):
        scores = floats(size + (end is FinishReason.EOS)).tolist()
        hypotheses.append(Hypothesis([at % 50 for at in range(size)], None, -1.5 * size, sum(scores), scores, end))
    response, num_turns = await made(answers.found(request(), Searched(11, hypotheses)))
    found = response.generated
    assert (response.position, found.finish_reason) == (11, pb.FINISH_REASON_EOS)
    assert list(found.tokens) == list(found.hypotheses[0].tokens)
    for hypothesis, message in zip(hypotheses, found.hypotheses, strict=True):
        assert message == convert.hypothesis(hypothesis, BUNDLE)
    assert num_turns > 5


async def test_a_search_that_found_nothing_has_ended() -> None:
    response, _ = await made(answers.found(request(), Searched(2, [])))
    assert response.generated == pb.Generated(finish_reason=pb.FINISH_REASON_EOS)


def error(at: int) -> CarouselError:
    return InvalidFieldError(f"handles[{at}] is wrong", field=f"handles[{at}]")


BATCHES = {
    "tokens": Stepped(list(range(40_000)), [at % 50 for at in range(40_000)], [], None, []),
    "top-k": Stepped(list(range(6000)), [at % 50 for at in range(120_000)], floats(120_000).tolist(), None, []),
    "logits": Stepped(list(range(3000)), [], [], floats(3000, 50), []),
    "errors": Stepped([0] * 900, [0] * 900, [], None, [(at, error(at)) for at in range(900)]),
}


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("numbers", ["logits", "values"])
async def test_a_large_step_batch_response_is_made_in_slices_and_equal(kind: str, numbers: convert.Numbers) -> None:
    one = request()
    one.replayed = True
    response, num_turns = await made(answers.large_batch_stepped(one, BATCHES[kind], numbers=numbers))
    assert response == answers.batch_stepped(one, BATCHES[kind], numbers=numbers)
    assert num_turns > 2


async def test_a_step_batch_of_no_session_has_an_empty_answer() -> None:
    one, result = request(), Stepped([], [], [], None, [])
    response, _ = await made(answers.large_batch_stepped(one, result, numbers="logits"))
    assert response == answers.batch_stepped(one, result, numbers="logits")


@pytest.mark.parametrize("max_bytes", [512, 3000, 2**22])
def test_the_texts_of_a_refusal_fit_into_one_response(max_bytes: int) -> None:
    error = InvalidFieldError("語" * 5000, field="語" * 5000, first="語" * 5000, second="語" * 5000)
    response = refused(1, "s", None, error, max_bytes, call_id="c" * 128)
    assert response.error.ByteSize() <= max_bytes
    assert response.error.reason == "INVALID_FIELD"
    assert response.error.message.startswith("語" * 20)
    assert response.error.metadata.get("x-request-id", "c" * 128) == "c" * 128, "whole, or not there"


def test_each_error_of_a_step_batch_has_the_calls_id_where_there_is_room() -> None:
    result = Stepped([0, 0], [0, 0], [], None, [(0, InvalidFieldError("a")), (1, InvalidFieldError("b"))])
    for length, given in ((200, {"x-request-id": "the-call"}), (7, {})):
        message = answers.stepped(result, numbers="logits", error_length=length, call_id="the-call")
        assert [dict(one.error.metadata) for one in message.errors] == [given, given]
