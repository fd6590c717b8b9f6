"""Tests both clients against the real service, for what a fake server cannot show."""

from __future__ import annotations

import itertools
from math import fsum
from pathlib import Path

import numpy as np
import pytest

from carousel import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    FinishReason,
    InvalidArgumentError,
    NotFoundError,
    PositionMismatchError,
    ResourceExhaustedError,
)
from carousel._requests import Source
from examples.local_service import LocalService
from service.engine.decoding import score
from tests.reference import ReferenceSession
from tests.services import local_service


@pytest.fixture
def target(tiny_service: LocalService) -> str:
    return tiny_service.target


def test_a_beam_search_gives_its_best_as_tokens_and_all_as_hypotheses(target: str) -> None:
    with Client(target) as client, client.session("tiny-bos") as session:
        generation = session.generate(max_tokens=6, beam_size=4, num_best=3, length_penalty=0.5)
        tokens = list(generation)
        best, *others = generation.hypotheses
        assert tuple(tokens) == best.tokens
        assert best.score >= max(other.score for other in others)
        assert isinstance(best.finish_reason, FinishReason)
        assert session.position == generation.position == len(tokens)
        whole = client.generate("tiny-bos", max_tokens=6, beam_size=4, num_best=3, length_penalty=0.5)
        assert list(whole) == tokens
        assert whole.hypotheses == generation.hypotheses
        with pytest.raises(TypeError, match="can be set only with beam_size"):
            session.generate(num_best=2)
        with pytest.raises(InvalidArgumentError, match="are both set"):
            list(session.generate(beam_size=2, temperature=1.0))


async def test_scores_are_those_of_a_loop_and_both_clients_agree(target: str, tiny_repository: Path) -> None:
    targets: list[Source] = [["t5", "t6"], [7], "t4 t4"]
    with Client(target) as client, client.session("tiny-bos") as session:
        session.feed([8])
        scores = session.score(targets, with_end=True)
        assert session.position == 1
        assert client.score("tiny-bos", targets, prompt=[8], with_end=True) == scores
        with pytest.raises(TypeError, match="must be a list of sequences"):
            session.score("t5")
        with pytest.raises(InvalidArgumentError, match="targets\\[1\\]"):
            session.score([[5], [99]])
        with pytest.raises(InvalidArgumentError, match="the limit is 64"):
            session.score([[5]] * 65)
    async with AsyncClient(target) as client_, client_.session("tiny-bos", variant="fp32") as session_:
        await session_.feed([8])
        assert await session_.score(targets, with_end=True) == scores
        assert await client_.score("tiny-bos", targets, prompt=[8], with_end=True) == scores
    for target_, found in zip([[5, 6, 3], [7, 3], [4, 4, 3]], scores, strict=True):
        reference = ReferenceSession(tiny_repository / "tiny-bos" / "1")
        reference.step(8)
        rows = [reference.logits, *(reference.step(token) for token in target_[:-1])]
        expected = score(np.array(rows), np.array(target_)).tolist()
        assert list(found.log_probabilities) == expected
        assert found.log_probability == fsum(expected)


def test_a_variant_can_be_requested_and_is_reported(target: str) -> None:
    with Client(target) as client:
        assert client.model("tiny-heads").variants == ("fp32", "other")
        with client.session("tiny-heads", variant="other") as session, client.session("tiny-heads") as usual:
            assert (session.variant, usual.variant) == ("other", "fp32")
            assert client.sessions.get(session.id).variant == "other"
            assert session.feed([5], logits=True).logits != usual.feed([5], logits=True).logits
        with pytest.raises(NotFoundError, match="variant = 'int4' of model 'tiny-heads'"):
            client.session("tiny-heads", variant="int4")
        with pytest.raises(NotFoundError, match="variant = 'int4'"):
            list(client.generate("tiny-heads", variant="int4"))


def test_a_batch_steps_its_sessions_together_and_each_as_if_alone(target: str) -> None:
    with Client(target) as client, client.batch("tiny-bos") as batch:
        assert batch.open(session_id="mine") == 0
        assert batch.open_many([None] * 30) == list(range(1, 31))
        assert len(batch) == 31
        alone = [client.session("tiny-bos") for _ in range(31)]
        for shift in range(3):
            tokens = [(place + shift) % 17 for place in range(31)]
            step = batch.step(tokens, logits=True)
            expected = [session.feed([token], logits=True).logits for session, token in zip(alone, tokens, strict=True)]
            assert step.logits == tuple(itertools.chain(*expected))
        step = batch.step([[1, 2], [3]], places=[30, 4], top_k=2)
        assert (step.places, step.positions) == ((30, 4), (5, 4))
        fed = alone[30].feed([1, 2], top_k=2).tokens
        assert step.token_ids[:2] == tuple(token.id for token in fed)
        assert step.log_probabilities[:2] == tuple(token.log_probability for token in fed)
        assert batch.positions == (3, 3, 3, 3, 4, *[3] * 25, 5)
        assert client.sessions.get("mine").position == 3
        for session in alone:
            session.close()
    with Client(target) as client, pytest.raises(NotFoundError):
        client.sessions.get("mine")


def test_steps_may_be_in_flight_and_a_row_that_fails_harms_no_other(target: str) -> None:
    with Client(target) as client, client.batch("tiny-lm", timeout=20.0) as batch:
        batch.open_many([None] * 8)
        for _ in range(5):
            batch.send([3] * 8, outputs=False)
        with pytest.raises(LookupError, match="other steps are in flight"):
            batch.step([3] * 8)
        batch.send([99, *[3] * 7])
        batch.send([3] * 8)
        steps = [batch.receive() for _ in range(7)]
        assert [step.positions[1] for step in steps] == [1, 2, 3, 4, 5, 6, 7]
        assert not any(step.errors for step in steps[:5])
        assert isinstance(steps[5].errors[0], InvalidArgumentError)
        assert isinstance(steps[6].errors[0], PositionMismatchError)
        assert batch.positions == (5, *[7] * 7)
        assert not batch.step([3] * 8).errors
        with pytest.raises(InvalidArgumentError, match="top_k = 18"):
            batch.step([3] * 8, top_k=18)
        assert batch.positions == (6, *[8] * 7)
        with pytest.raises(LookupError):
            batch.receive()


async def test_the_asyncio_batch_is_the_same(target: str) -> None:
    async with AsyncClient(target) as client, client.batch("tiny-heads", variant="other") as batch:
        assert await batch.open_many([None] * 4) == [0, 1, 2, 3]
        assert await batch.open() == 4
        step = await batch.step([5] * 5)
        batch.send([6] * 5)
        later = await batch.receive()
        with Client(target) as blocking, blocking.batch("tiny-heads", variant="other") as other:
            other.open_many([None] * 5)
            assert [other.step([5] * 5), other.step([6] * 5)] == [step, later]
        with pytest.raises(InvalidArgumentError, match="source must not be set"):
            await batch.open("abc")


def test_a_request_that_is_refused_for_now_has_a_retry_delay(tiny_repository: Path) -> None:
    with (
        local_service(tiny_repository, {"max-forks": 2, "num-forks": 2}) as service,
        Client(service.target) as client,
        client.session("tiny-endless") as busy,
        client.session("tiny-endless") as other,
    ):
        with pytest.raises(DeadlineExceededError):
            next(busy.generate(max_tokens=60_000, beam_size=2, timeout=0.05))  # the generation continues on the server
        with pytest.raises(ResourceExhaustedError) as raised:
            other.score([[5], [6]])
        assert raised.value.retry_delay
