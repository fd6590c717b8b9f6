"""How both clients handle lost connections, servers that shut down, and repeated refusals."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta

import grpc
import pytest

from carousel import (
    AsyncClient,
    CarouselError,
    Client,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    PositionMismatchError,
    RequestCancelledError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
    _answers,
)
from carousel._backoff import CONNECTION_LOST, Attempts, Backoff, CallBackoff, is_retried
from carousel.v1 import error_pb2

from .fake_server import FakeServer
from .shells import AsyncioShell, BlockingShell, Shell, take

SHUTTING_DOWN = error_pb2.Error(code=14, message="the server is shutting down", reason="SHUTTING_DOWN")
OLD_SHUTDOWN = error_pb2.Error(
    code=1, message="the session was closed: shutdown", reason="CANCELLED", metadata={"close_reason": "shutdown"}
)
CLOSED_BY_ADMIN = error_pb2.Error(
    code=1, message="the session was closed: client", reason="CANCELLED", metadata={"close_reason": "client"}
)


async def test_a_feed_that_is_too_large_fails_alone_and_is_sent_once(shell: Shell, server: FakeServer) -> None:
    session = await shell.open(on_disconnect="hold")
    with pytest.raises(ResourceExhaustedError, match="SERVER: Received message larger than max"):
        await session.feed(["A" * 4_500_000])
    assert (await session.feed("A")).position == 1
    assert server.num_streams == 2
    with pytest.raises(ResourceExhaustedError, match=r"feed: the request has \d+ bytes.*at most 4194304") as refused:
        await session.feed(["A" * 4_500_000])
    assert (refused.value.reason, refused.value.field) == ("MESSAGE_TOO_LARGE", "feed")
    assert (await session.feed("A")).position == 2
    assert server.num_streams == 2
    await session.close()


async def test_a_request_that_ends_two_streams_fails_and_the_session_goes_on(shell: Shell, server: FakeServer) -> None:
    server.poison = "D"
    session = await shell.open(on_disconnect="hold")
    await session.feed("A")
    with pytest.raises(InternalError, match="the handler crashed"):
        await session.feed("D")
    assert server.num_streams == 2
    assert not session.facts.closed
    assert (await session.feed("B")).position == 2
    await session.close()


@pytest.mark.usefixtures("without_delays")
async def test_a_refusal_is_not_blamed_on_a_request_that_follows(shell: Shell, server: FakeServer) -> None:
    """A feed whose caller has given up ends the stream. The client drops it and sends the next request."""
    session = await shell.open(on_disconnect="hold")
    server.mute()
    with pytest.raises(DeadlineExceededError):
        await session.feed("D", timeout=0.02)
    server.session.lose()  # the feed's response and its effect are lost with the stream
    server.poison = "D"
    server.end_stream()
    server.unmute()
    assert (await session.feed("B", timeout=10)).position == 1
    await session.close()


@pytest.mark.usefixtures("without_delays")
async def test_a_session_that_a_server_cannot_resume_is_asked_for_by_other_routes(
    shell: Shell, server: FakeServer
) -> None:
    session = await shell.open(on_disconnect="hold", session_id="s")
    await session.feed("A")
    server.num_unusable = 3
    server.end_stream()
    assert (await session.feed("B")).position == 2
    assert server.metadata["x-session-id"] == "s~3"
    server.end_stream()
    assert (await session.feed("C")).position == 3
    assert (server.metadata["x-session-id"], server.num_streams) == ("s~3", 6), "it is asked for there from then on"
    server.num_unusable = 100
    server.end_stream()
    with pytest.raises(FailedPreconditionError, match="which is not served") as refused:
        await session.feed("D")
    assert refused.value.reason == "SNAPSHOT_MODEL"


@pytest.mark.usefixtures("without_delays")
async def test_a_session_that_is_resumed_is_asked_for_by_other_routes(server: FakeServer) -> None:
    for number in range(2):
        name = f"s{number}"
        server.num_unusable = 0
        with Client(server.target) as client:
            client.session("toy", "ab", on_disconnect="hold", session_id=name).feed("A")
        server.num_unusable = 2
        if number:
            with Client(server.target) as client, client.resume(name) as resumed:
                assert resumed.position == 1
        else:
            async with AsyncClient(server.target) as other, other.resume(name) as session:
                assert session.position == 1
        assert server.metadata["x-session-id"] == f"{name}~2"


async def test_a_recovery_ends_in_time_and_a_later_call_tries_again(shell: Shell, server: FakeServer) -> None:
    session = await shell.open(on_disconnect="hold", resume_timeout=0.1)
    server.kill()
    for _ in range(2):
        began_s = time.monotonic()
        with pytest.raises(UnavailableError):
            await session.feed("A")
        assert time.monotonic() - began_s < 5
        assert not session.facts.closed


async def test_a_calls_timeout_in_an_outage_ends_that_call_alone(shell: Shell, server: FakeServer) -> None:
    session = await shell.open(on_disconnect="hold")
    server.kill()
    for _ in range(2):
        with pytest.raises(DeadlineExceededError):
            await session.feed("A", timeout=0.02)
        assert not session.facts.closed


async def test_a_session_that_ends_with_its_server_is_used_until_then(shell: Shell, server: FakeServer) -> None:
    session = await shell.open(on_disconnect="hold", durability="none")
    server.go_away()
    assert (await session.feed("A")).position == 1
    assert server.num_streams == 1
    await session.close()


async def test_another_call_in_place_of_a_feed_cancels_it(shell: Shell, server: FakeServer) -> None:
    session = await shell.open()
    server.mute()
    with pytest.raises(DeadlineExceededError):
        await session.feed(["A", "B"], timeout=0.02)
    server.unmute()
    with pytest.raises(PositionMismatchError, match="whose answer was not awaited"):
        await take(session.generate())
    kinds = [server.requests.get().WhichOneof("request") for _ in range(3)]
    assert kinds == ["open", "feed", "cancel"]
    assert session.facts.position == 2
    assert (await session.feed("A")).position == 3
    await session.close()


async def test_cancel_tells_the_position(shell: Shell, server: FakeServer) -> None:
    session = await shell.open("toy", "stall")
    assert await session.cancel() == 0
    await take(session.generate(), 1)
    assert await session.cancel() == 3
    server.mute()
    with pytest.raises(DeadlineExceededError):
        await session.feed("A", timeout=0.02)
    server.unmute()
    assert await session.cancel() == 4
    assert (await session.feed("B")).position == 5
    await session.close()


@pytest.mark.parametrize("error", [SHUTTING_DOWN, OLD_SHUTDOWN], ids=["now", "version 0.1"])
@pytest.mark.parametrize("num_tokens", [0, 2])
@pytest.mark.usefixtures("without_delays")
async def test_one_call_is_made_again_when_its_server_shuts_down(
    shell: Shell, server: FakeServer, error: error_pb2.Error, num_tokens: int
) -> None:
    server.failures = [(num_tokens, error), (0, error), (3, error)]
    assert [token.text for token in await shell.generate("toy", "ab")] == ["A", "B", "C", "D", "A"]
    assert not server.failures


async def test_one_call_that_an_operator_closed_is_not_made_again(shell: Shell, server: FakeServer) -> None:
    server.failures = [(2, CLOSED_BY_ADMIN)]
    with pytest.raises(RequestCancelledError, match="closed: client"):
        await shell.generate("toy", "ab")


async def test_one_call_gives_up_in_time(shell: Shell, server: FakeServer) -> None:
    server.failures = [(0, SHUTTING_DOWN)] * 1000
    began_s = time.monotonic()
    with pytest.raises(UnavailableError, match="SHUTTING_DOWN"):
        await shell.generate("toy", "ab", resume_timeout=0.1)
    assert time.monotonic() - began_s < 5


@pytest.mark.usefixtures("without_delays")
async def test_a_score_is_asked_for_again_when_its_server_shuts_down(shell: Shell, server: FakeServer) -> None:
    server.failures = [(0, SHUTTING_DOWN), (0, OLD_SHUTDOWN)]
    with pytest.raises(UnimplementedError):  # the fake server's answer after the failures
        await shell.score("toy", ["A"])
    assert not server.failures


def test_delays_grow_and_the_whole_is_limited() -> None:
    backoff, error, now_s, delays = Backoff(10.0), UnavailableError("gone"), 100.0, list[float]()
    backoff.begin(now_s)

    def attempt() -> float:
        backoff.attempted()
        delays.append(backoff.next(error, now_s))
        backoff.begin(now_s + delays[-1])  # a further loss does not restart the time limit
        return now_s + delays[-1]

    with pytest.raises(UnavailableError):  # noqa: PT012  # any attempt may be the last one
        while True:
            now_s = attempt()
    assert now_s <= 110.0
    assert delays[0] == 0.0
    assert 0.025 <= delays[1] <= 0.05
    assert max(delays) <= 2.0
    backoff.reset()
    assert backoff.remaining_s(now_s) == 10.0


def test_calls_that_are_shorter_than_the_delay_wait_for_the_same_one() -> None:
    backoff, error = Backoff(60.0), UnavailableError("gone")
    backoff.begin(0.0)
    assert backoff.next(error, 0.0) == 0.0
    backoff.attempted()
    end_s = backoff.next(error, 0.0)
    assert end_s >= 0.025
    backoff.pause(0.01)
    backoff.begin(0.02)
    assert backoff.next(error, 0.02) == end_s - 0.02
    for now_s in (1.0, 2.0):  # the call at 1.0 ended before its attempt did
        assert backoff.next(error, now_s) == 0.0
    backoff.attempted()
    assert backoff.next(error, 2.0) >= 0.05


@pytest.mark.parametrize("kind", [BlockingShell, AsyncioShell])
async def test_calls_that_are_shorter_than_an_attempts_delay_resume_a_session(
    kind: type[Shell], server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carousel._backoff.random.uniform", lambda least, most: most)  # 0, 0.05 s, 0.1 s
    shell = kind(server.target)
    session = await shell.open(on_disconnect="hold")
    server.num_unusable = 2  # the next resumes are refused
    server.end_stream()
    num_calls = 0
    while session.facts.position == 0:
        num_calls += 1
        assert num_calls < 100
        with contextlib.suppress(DeadlineExceededError):
            await session.feed("A", timeout=0.02)
    assert num_calls > 1
    await session.close()
    await shell.close()


def test_time_between_calls_does_not_count() -> None:
    backoff = Backoff(10.0)
    backoff.begin(0.0)
    backoff.pause(4.0)
    assert backoff.remaining_s(1000.0) == 6.0
    backoff.begin(1000.0)
    assert backoff.remaining_s(1003.0) == 3.0


@pytest.mark.parametrize(
    ("error", "position", "is_retried"),
    [
        (UnavailableError("failed to connect"), 0, False),
        (UnavailableError("failed to connect"), 1, True),
        (UnavailableError("reset", reason=CONNECTION_LOST), 0, True),
        (_answers.error(SHUTTING_DOWN), 0, True),
        (_answers.error(OLD_SHUTDOWN), 0, True),
        (_answers.error(CLOSED_BY_ADMIN), 5, False),
        (InternalError("crashed"), 5, False),
        (ResourceExhaustedError("full"), 5, False),
        (_answers.client_closed(), 5, False),
    ],
)
def test_a_call_is_made_again_only_where_that_can_help(error: CarouselError, position: int, is_retried: bool) -> None:
    backoff = CallBackoff(60.0)
    if is_retried:
        assert backoff.next(error, position, 0.0, None) == 0.0
    else:
        with pytest.raises(type(error)):
            backoff.next(error, position, 0.0, None)
    assert error.code in grpc.StatusCode


@pytest.mark.parametrize(
    ("error", "may_succeed"),
    [
        (UnavailableError("not answered"), True),
        (ResourceExhaustedError("full", retry_delay=timedelta(seconds=1)), True),
        (ResourceExhaustedError("message larger than max"), False),
        (InternalError("crashed"), False),
    ],
)
def test_a_session_is_resumed_later_only_where_that_can_help(error: CarouselError, may_succeed: bool) -> None:
    assert is_retried(error) is may_succeed


def test_a_refusal_that_repeats_on_a_fresh_connection_ends_a_recovery() -> None:
    attempts, refused = Attempts(), InternalError("crashed")
    assert attempts.can_help(refused), "it may have been about a request"
    attempts.count += 1
    assert attempts.can_help(UnavailableError("not answered"))
    assert attempts.can_help(refused), "the first on a fresh connection"
    assert not attempts.can_help(refused)
    assert attempts.can_help(UnavailableError("not answered")), "what may succeed later is tried on"
