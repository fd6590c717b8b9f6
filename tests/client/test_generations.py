"""Generations of both clients, in a session and in one call: the same scenarios with the same results."""

from __future__ import annotations

import pytest

from carousel import (
    DeadlineExceededError,
    FinishReason,
    NotFoundError,
    RequestCancelledError,
    Token,
)
from carousel.v1 import error_pb2

from .fake_server import FakeServer
from .shells import Shell, leave, take

SHUTTING_DOWN = error_pb2.Error(code=14, message="leaving", reason="SHUTTING_DOWN")
SHORT = 0.05
"""Timeout in seconds of a feed whose response the server holds back."""


async def test_a_session_generates_to_the_end(shell: Shell) -> None:
    session = await shell.open()
    await session.feed("A")
    generation = session.generate(log_probabilities=True)
    assert await take(generation) == [Token(i, text, -0.5) for i, text in ((3, "B"), (4, "C"), (5, "D"), (2, "A"))]
    assert generation.finish_reason is FinishReason.EOS
    assert generation.position == session.facts.position == 5
    await session.close()


async def test_decoding_options_reach_the_server(shell: Shell, server: FakeServer) -> None:
    session = await shell.open()
    generation = session.generate(max_tokens=1, temperature=0.5, seed=7)
    assert len(await take(generation)) == 1
    assert generation.finish_reason is FinishReason.MAX_TOKENS
    server.requests.get()
    decoding = server.requests.get().generate.decoding
    assert (decoding.max_tokens, decoding.sampling.temperature, decoding.sampling.seed) == (1, 0.5, 7)
    assert not decoding.sampling.HasField("top_k")
    await take(session.generate(max_tokens=1))
    assert not server.requests.get().generate.decoding.HasField("sampling")
    with pytest.raises(TypeError, match="temprature"):
        session.generate(temprature=1.0)
    await session.close()


async def test_the_client_chooses_a_seed_and_reports_it(shell: Shell, server: FakeServer) -> None:
    session = await shell.open()
    server.requests.get()
    seeds = []
    for _ in range(2):
        generation = session.generate(max_tokens=1, temperature=0.5)
        await take(generation)
        seeds.append(server.requests.get().generate.decoding.sampling.seed)
        assert generation.seed == seeds[-1]
    assert seeds[0] != seeds[1]
    assert max(seeds) < 2**53  # JSON and JavaScript represent it exactly
    generation = session.generate(max_tokens=1, seed=0)
    await take(generation)
    decoding = server.requests.get().generate.decoding
    assert decoding.HasField("sampling")
    assert decoding.sampling.seed == generation.seed == 0
    assert session.generate(max_tokens=1).seed is None
    await session.close()


async def test_a_generation_that_is_made_again_keeps_its_seed(shell: Shell, server: FakeServer) -> None:
    server.failures = [(1, SHUTTING_DOWN)]
    assert len(await shell.generate("toy", temperature=0.5)) > 1
    first, again = server.decodings
    assert first == again
    assert first.sampling.seed


async def test_a_generation_left_early_is_cancelled_and_the_session_goes_on(shell: Shell, server: FakeServer) -> None:
    session = await shell.open("toy", "stall")
    generation = session.generate()
    assert [token.text for token in await take(generation, 1)] == ["A"]
    await leave(generation)
    assert not server.session.is_generating
    assert session.facts.position == generation.position == 3
    assert await take(generation) == []
    assert generation.finish_reason is None
    assert (await session.feed("A")).position == 4
    await session.close()


async def test_a_generation_out_of_time_is_cancelled_by_the_next_call(shell: Shell, server: FakeServer) -> None:
    session = await shell.open("toy", "stall")
    generation = session.generate(timeout=SHORT)
    with pytest.raises(DeadlineExceededError):
        await take(generation)
    assert (await session.feed("A")).position == 4
    with pytest.raises(RequestCancelledError, match="cancelled at position 3"):
        await take(generation)
    await session.close()


async def test_one_call_generates(shell: Shell) -> None:
    tokens = await shell.generate("toy", "ab", prompt=["A", "B"], log_probabilities=True)
    assert [(token.text, token.log_probability) for token in tokens] == [("C", -0.5), ("D", -0.5), ("A", -0.5)]


async def test_one_call_that_fails_raises_the_servers_own_error(shell: Shell) -> None:
    with pytest.raises(NotFoundError, match=r"model 'none' is unknown \[MODEL_NOT_FOUND\]"):
        await shell.generate("none")


async def test_one_call_left_early_is_cancelled(shell: Shell, server: FakeServer) -> None:
    assert (await shell.generate_one("toy", "stall")).text == "A"
    assert server.cancelled.wait(5)


async def test_one_call_out_of_time_gives_its_tokens_and_then_raises(shell: Shell) -> None:
    with pytest.raises(DeadlineExceededError):
        await shell.generate("toy", "stall", timeout=SHORT)
