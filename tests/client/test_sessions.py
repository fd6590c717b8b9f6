"""Sessions of both clients against a fake server over real gRPC: the same scenarios with the same results."""

from __future__ import annotations

import pytest

from carousel import (
    CloseReason,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    PositionMismatchError,
    SessionClosedError,
    StepOutput,
    Token,
)

from .fake_server import FakeServer
from .shells import AsyncioShell, BlockingShell, Shell, take

SHORT = 0.02
"""Timeout in seconds of a feed whose response the server holds back."""


async def test_an_opened_session_tells_what_it_is(shell: Shell, server: FakeServer) -> None:
    session = await shell.open("toy", "ab", session_id="mine", version=2, top_k=2)
    facts = session.facts
    assert (facts.id, facts.model, facts.version, facts.position) == ("mine", "toy", 2, 0)
    assert facts.source == (Token(97, "a"), Token(98, "b"))
    assert facts.first == StepOutput(0, (Token(2, "A", -0.5), Token(3, "B", -0.5)))
    assert server.metadata["x-session-id"] == "mine"
    await session.close()


async def test_a_session_without_an_id_gets_one(shell: Shell, server: FakeServer) -> None:
    session = await shell.open()
    assert session.facts.id == "made-by-server"
    assert session.facts.first is None
    assert "x-session-id" not in server.metadata
    await session.close()


@pytest.mark.parametrize("source", ["ab", ["a", "b"], [97, 98], (97, 98)])
async def test_a_source_is_text_or_names_or_ids(shell: Shell, source: object) -> None:
    session = await shell.open("toy", source)
    assert [token.text for token in session.facts.source] == ["a", "b"]
    await session.close()


@pytest.mark.parametrize("tokens", [["A", "B"], [2, 3], ("A", "B"), range(2, 4)])
async def test_tokens_are_fed_by_name_or_by_id(shell: Shell, server: FakeServer, tokens: object) -> None:
    session = await shell.open()
    step = await session.feed(tokens)
    assert (step.position, step.token.text, step.replayed) == (2, "C", False)
    assert server.session.consumed == [2, 3]
    await session.close()


async def test_a_feed_returns_what_it_asks_for(shell: Shell) -> None:
    session = await shell.open()
    assert [t.text for t in (await session.feed("A", top_k=3)).tokens] == ["B", "C", "D"]
    assert (await session.feed(3, logits=True)).logits == (0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert (await session.feed("C", outputs=False)).outputs == ()
    everywhere = await session.feed(["D", "A"], every_position=True)
    assert [(o.position, o.tokens[0].text) for o in everywhere.outputs] == [(4, "A"), (5, "B")]
    assert session.facts.position == everywhere.position == 5
    await session.close()


async def test_a_refused_feed_changes_nothing_and_names_the_field(shell: Shell) -> None:
    session = await shell.open()
    with pytest.raises(InvalidArgumentError, match=r"feed\.tokens\[1\] = 'X' is not .* \[UNKNOWN_TOKEN\]") as caught:
        await session.feed(["A", "X"])
    assert caught.value.field == "feed.tokens[1]"
    assert (await session.feed("A")).position == 1
    await session.close()


async def test_an_unknown_model_is_not_found(shell: Shell) -> None:
    with pytest.raises(NotFoundError, match="model 'none' is unknown"):
        await shell.open("none")


async def test_a_feed_that_ran_out_of_time_may_be_sent_again(shell: Shell, server: FakeServer) -> None:
    session = await shell.open()
    server.mute()
    for _ in range(2):
        with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.02 s"):
            await session.feed(["A", "B"], timeout=SHORT)
    server.unmute()
    step = await session.feed(["A", "B"])
    assert (step.position, step.replayed) == (2, True)
    assert (await session.feed("C")).position == session.facts.position == 3
    assert server.session.consumed == [2, 3, 4]
    await session.close()


async def test_something_else_after_a_feed_that_ran_out_of_time_is_refused(shell: Shell, server: FakeServer) -> None:
    session = await shell.open()
    server.mute()
    with pytest.raises(DeadlineExceededError):
        await session.feed("A", timeout=SHORT)
    server.unmute()
    with pytest.raises(PositionMismatchError, match="the session is at 1") as caught:
        await session.feed("B")
    assert caught.value.expected_position == session.facts.position == 1
    await session.close()


@pytest.mark.parametrize("kind", [BlockingShell, AsyncioShell])
async def test_the_clients_timeout_is_the_default(kind: type[Shell], server: FakeServer) -> None:
    shell = kind(server.target, timeout=0.25)
    server.mute()
    with pytest.raises(DeadlineExceededError):
        await shell.open()
    assert server.stream_ended.wait(5)
    await shell.close()


async def test_an_evicted_session_says_why(shell: Shell, server: FakeServer) -> None:
    session = await shell.open()
    await session.feed("A")
    server.evict()
    with pytest.raises(SessionClosedError, match=r"closed \(idle\) at position 1") as caught:
        await session.feed("A")
    assert caught.value.close_reason is CloseReason.IDLE
    assert session.facts.closed
    await session.close()


async def test_a_closed_session_refuses_and_may_be_closed_again(shell: Shell, server: FakeServer) -> None:
    session = await shell.open()
    assert not session.facts.closed
    await session.close()
    await session.close()
    assert session.facts.closed
    assert server.stream_ended.wait(5)
    assert not server.session.is_open
    with pytest.raises(SessionClosedError, match="client"):
        await session.feed("A")
    with pytest.raises(SessionClosedError, match="client"):
        await take(session.generate())


@pytest.mark.parametrize(
    ("tokens", "options", "error", "words"),
    [
        ([-1], {}, InvalidArgumentError, r"feed\.token_ids\[0\] = -1 must be 0 to 4294967295"),
        ([2, 2**32], {}, InvalidArgumentError, r"feed\.token_ids\[1\] = 4294967296"),
        ("A", {"top_k": -1}, InvalidArgumentError, r"feed\.outputs\.top_k = -1"),
        (["A", 1], {}, TypeError, "must be all names"),
        ([1.5], {}, TypeError, r"feed\.token_ids\[0\] must be an integer, not 1\.5"),
        (b"A", {}, TypeError, "not b'A'"),
        ("A", {"top_k": 1, "logits": True}, TypeError, "only one"),
    ],
)
async def test_values_that_do_not_fit_a_message_are_refused_before_sending(
    shell: Shell, tokens: object, options: dict[str, object], error: type[Exception], words: str
) -> None:
    session = await shell.open()
    with pytest.raises(error, match=words) as raised:
        await session.feed(tokens, **options)
    reason = getattr(raised.value, "reason", None)
    assert reason == ("INVALID_FIELD" if error is InvalidArgumentError else None)
    assert (await session.feed("A")).position == 1
    await session.close()


async def test_an_id_that_no_header_can_hold_is_left_to_the_server(shell: Shell) -> None:
    session = await shell.open(session_id="naïve\n")
    assert session.facts.id == "naïve\n"
    await session.close()
