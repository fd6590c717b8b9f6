"""`generate_many` returns what single generations return, also from a full server and from one that is killed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from carousel import (
    AsyncClient,
    Client,
    GeneratedSequence,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from examples.local_service import LocalService
from examples.ports import free_port
from tests.services import local_service
from tests.waiting import wait_until

MODEL = "g2p-en"
WORDS = ["carousel", "a", "sequences", "gate", "forget", "elephant", "state", "recurrent"] * 5
REFUSED = "9"


def texts_of(result: GeneratedSequence) -> list[str]:
    assert result.error is None
    return [token.text for token in result.tokens]


def open_sessions(client: Client) -> set[str]:
    """Returns the ids of the model's open sessions."""
    return {info.session_id for info in client.sessions.list() if info.model == MODEL}


@pytest.mark.parametrize(
    "decoding", [{}, {"beam_size": 3, "num_best": 2}, {"temperature": 1.5, "seed": 7}], ids=["greedy", "beam", "seed"]
)
async def test_generate_many_returns_what_generate_returns(
    shipped_service: LocalService, decoding: dict[str, Any]
) -> None:
    with Client(shipped_service.target) as client:
        expected = [[token.text for token in client.generate(MODEL, word, **decoding)] for word in WORDS[:8]] * 5
        found = list(client.generate_many(MODEL, WORDS, **decoding))
    assert [result.source for result in found] == WORDS
    assert [texts_of(result) for result in found] == expected
    assert {len(result.hypotheses) for result in found} == {decoding.get("num_best", 0)}
    async with AsyncClient(shipped_service.target) as other:
        assert [texts_of(result) async for result in other.generate_many(MODEL, WORDS, **decoding)] == expected


async def test_a_refused_source_keeps_its_place(shipped_service: LocalService) -> None:
    sources = ["gate", REFUSED, "gate"]
    with Client(shipped_service.target) as client:
        found = list(client.generate_many(MODEL, sources))
    async with AsyncClient(shipped_service.target) as other:
        also = [result async for result in other.generate_many(MODEL, sources)]
    for results in (found, also):
        assert [result.error is None for result in results] == [True, False, True]
        assert "'9' is not in the source vocabulary" in str(results[1].error)


def test_sources_without_end_are_read_a_little_ahead_and_leaving_closes_all(shipped_service: LocalService) -> None:
    num_read = 0

    def sources() -> Iterator[str]:
        nonlocal num_read
        for word in itertools.cycle(WORDS):
            num_read += 1
            yield word

    with Client(shipped_service.target) as client:
        others = open_sessions(client)
        results = client.generate_many(MODEL, sources(), concurrency=4)
        assert [result.source for result in itertools.islice(results, 10)] == WORDS[:10]
        assert num_read <= 10 + 4
        results.close()
        wait_until(lambda: open_sessions(client) <= others)


async def test_leaving_an_asynchronous_iterator_closes_all(shipped_service: LocalService) -> None:
    with Client(shipped_service.target) as observer:
        others = open_sessions(observer)
        async with AsyncClient(shipped_service.target) as client:
            results = client.generate_many(MODEL, itertools.cycle(WORDS), concurrency=4)
            assert texts_of(await anext(results))
            await results.aclose()
            wait_until(lambda: open_sessions(observer) <= others)


async def test_refused_generations_leave_no_sessions(shipped_service: LocalService) -> None:
    refused: dict[str, Any] = {"max_tokens": 10**6, "concurrency": 2}
    with Client(shipped_service.target) as client:
        others = open_sessions(client)
        for number, result in enumerate(client.generate_many(MODEL, WORDS, **refused), 1):
            assert isinstance(result.error, InvalidArgumentError)
            if number == len(WORDS):
                wait_until(lambda: len(open_sessions(client) - others) <= 2)


async def test_a_source_that_no_message_may_hold_is_refused_alone(shipped_service: LocalService) -> None:
    sources = ["gate", "a" * 5_000_000, "state", "gate"]
    with Client(shipped_service.target) as client:
        found = list(client.generate_many(MODEL, sources))
    async with AsyncClient(shipped_service.target) as other:
        also = [result async for result in other.generate_many(MODEL, sources)]
    for results in (found, also):
        assert [result.source for result in results] == sources
        assert [type(result.error) for result in results] == [
            type(None),
            ResourceExhaustedError,
            type(None),
            type(None),
        ]


def test_without_a_seed_each_source_has_its_own_samples(shipped_service: LocalService) -> None:
    with Client(shipped_service.target) as client:
        found = {tuple(texts_of(result)) for result in client.generate_many(MODEL, ["carousel"] * 8, temperature=3.0)}
    assert len(found) > 1


def test_a_source_is_answered_while_the_next_is_waited_for(shipped_service: LocalService) -> None:
    answered = threading.Event()

    def sources() -> Iterator[str]:
        yield "gate"
        assert answered.wait(30), "the first has no answer"
        yield "state"

    with Client(shipped_service.target) as client:
        for result in client.generate_many(MODEL, sources()):
            assert texts_of(result)
            answered.set()


async def test_an_error_of_the_sources_is_raised_after_the_results(shipped_service: LocalService) -> None:
    def sources() -> Iterator[str]:
        yield "gate"
        raise OSError("the disk is gone")

    async def also() -> AsyncIterator[str]:
        for source in sources():
            yield source

    with Client(shipped_service.target) as client:
        results = client.generate_many(MODEL, sources())
        assert texts_of(next(results)) == ["G", "EY", "T"]
        with pytest.raises(OSError, match="disk"):
            next(results)
    async with AsyncClient(shipped_service.target) as other:
        more = other.generate_many(MODEL, also())
        assert texts_of(await anext(more)) == ["G", "EY", "T"]
        with pytest.raises(OSError, match="disk"):
            await anext(more)


async def test_a_server_with_few_slots_is_waited_for(g2p_repository: Path) -> None:
    with local_service(g2p_repository, {"max-sessions": 3}) as service:
        with Client(service.target) as client:
            assert [texts_of(result)[-1] for result in client.generate_many(MODEL, ["gate"] * 20)] == ["T"] * 20
        async with AsyncClient(service.target) as other:
            assert [texts_of(one)[-1] async for one in other.generate_many(MODEL, ["gate"] * 20)] == ["T"] * 20


async def test_a_killed_server_is_waited_for(g2p_repository: Path) -> None:
    """The next server generates the sequences that the killed server did not complete."""
    flags = {"port": free_port()}
    with local_service(g2p_repository, flags) as service:
        client, other = Client(service.target), AsyncClient(service.target)
        results, more = (
            client.generate_many(MODEL, WORDS, concurrency=8),
            other.generate_many(MODEL, WORDS, concurrency=8),
        )
        found, also = [texts_of(next(results))], [texts_of(await anext(more))]
        service.kill()
    with local_service(g2p_repository, flags) as service, client:
        found += [texts_of(result) for result in results]
        also += [texts_of(result) async for result in more]
        await other.close()
        expected = [[token.text for token in client.generate(MODEL, word)] for word in WORDS[:8]] * 5
    assert found == also == expected


async def test_an_unreachable_server_is_not_waited_for() -> None:
    target = f"127.0.0.1:{free_port()}"
    with Client(target) as client, pytest.raises(UnavailableError):
        list(client.generate_many(MODEL, ["gate"]))
    async with AsyncClient(target) as other:
        with pytest.raises(UnavailableError):
            await anext(other.generate_many(MODEL, ["gate"]))
