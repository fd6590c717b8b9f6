"""`Client.watch` in both clients: what it sends, which events it returns, and how it ends."""

from __future__ import annotations

import asyncio
import threading

import pytest

from carousel import (
    AsyncClient,
    Client,
    CloseReason,
    DeadlineExceededError,
    FinishReason,
    Hypothesis,
    Port,
    RequestCancelledError,
    ResourceExhaustedError,
    SessionChange,
    Step,
    StepOutput,
    Token,
    UnavailableError,
    WatchBegun,
    WatchChanged,
    WatchClosed,
    WatchEvent,
    WatchFed,
    WatchGenerated,
)
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb
from tests.waiting import turns

from .fake_server import FakeServer
from .shells import Shell


def response(position: int, **event: object) -> pb.WatchResponse:
    return pb.WatchResponse(session_id="mine", position=position, **event)  # type: ignore[arg-type]


PORTS = [pb.Port(name="x", dtype="float32", shape=[2]), pb.Port(name="y", dtype="float32")]
BEGUN = response(
    0,
    watching=pb.Opened(
        model="toy", version=3, variant="fp32", durability=pb.DURABILITY_NONE, outputs=PORTS, feature_size=1
    ),
)

TOKENS = [pb.Token(id=2, text="A")]
VALUES = pb.Tensor(shape=[1, 1], data=bytes(4))
CLOSED = response(9, closed=pb.Closed(reason=pb.CLOSE_REASON_MOVED))


async def test_every_kind_of_event_is_returned(shell: Shell, server: FakeServer) -> None:
    output = pb.StepOutput(position=1, values=[1.0, 2.0, 3.0], trace=[pb.Trace(name="gate", values=[0.5])])
    found = pb.Hypothesis(tokens=TOKENS, score=-1.0, log_probability=-2.0, finish_reason=pb.FINISH_REASON_EOS)
    server.events = [
        BEGUN,
        response(1, fed=pb.Consumed(features=VALUES, fed=pb.Fed(outputs=[output]))),
        response(2, fed=pb.Consumed(tokens=TOKENS)),
        response(3, generated=pb.Generated(tokens=TOKENS)),
        response(4, generated=pb.Generated(values=VALUES, finish_reason=pb.FINISH_REASON_EOS, hypotheses=[found])),
        response(4, changed=pb.Changed(change=pb.SESSION_CHANGE_SET_BACK)),
        response(4, changed=pb.Changed(change=99)),  # type: ignore[arg-type]  # as a newer server may send
        response(5),  # as a newer server may send
        CLOSED,
    ]
    ports = (Port("x", "float32", (2,)), Port("y", "float32", ()))
    step = StepOutput(1, (), (), (1.0, 2.0, 3.0), {"gate": (0.5,)}, {"x": (1.0, 2.0), "y": (3.0,)})
    token = Token(2, "A")
    assert await shell.watch("mine") == [
        WatchBegun("mine", 0, "toy", 3, "fp32", "none", (), ports, 1),
        WatchFed("mine", 1, (), ((0.0,),), Step(1, (step,))),
        WatchFed("mine", 2, (token,)),
        WatchGenerated("mine", 3, (token,)),
        WatchGenerated(
            "mine", 4, (), ((0.0,),), FinishReason.EOS, (Hypothesis((token,), -1.0, -2.0, FinishReason.EOS),)
        ),
        WatchChanged("mine", 4, SessionChange.SET_BACK),
        WatchChanged("mine", 4, SessionChange.UNSPECIFIED),
        WatchEvent("mine", 5),
        WatchClosed("mine", 9, CloseReason.MOVED),
    ]
    assert server.metadata["x-session-id"] == "mine"


async def test_leaving_cancels_the_call(shell: Shell, server: FakeServer) -> None:
    server.events = [BEGUN]
    (event,) = await shell.watch("another/mine", 1)
    assert isinstance(event, WatchBegun)
    assert server.metadata["x-session-id"] == "mine", "as its owner's calls have it"
    assert await asyncio.to_thread(server.cancelled.wait, 20.0)


async def test_an_error_of_a_watch_is_raised_after_its_events(shell: Shell, server: FakeServer) -> None:
    server.events = [BEGUN]
    server.failures = [(0, error_pb2.Error(code=8, message="too slow", reason="WATCHER_DROPPED"))]
    with pytest.raises(ResourceExhaustedError, match="too slow") as dropped:
        await shell.watch("mine")
    assert dropped.value.reason == "WATCHER_DROPPED"
    server.failures = [(0, error_pb2.Error(code=14, message="it leaves", reason="SHUTTING_DOWN"))]
    with pytest.raises(UnavailableError, match="it leaves"):
        await shell.watch("mine")


async def test_a_watch_uses_its_own_timeout_and_not_the_clients(server: FakeServer) -> None:
    server.events = [BEGUN]
    with Client(server.target, timeout=0.02) as client, client.watch("mine") as watch:
        next(watch)
        threading.Timer(0.05, watch.close).start()  # later than the client's time-out of 0.02 s
        assert list(watch) == [], "it was closed, and had more time than the client's calls have"
        with pytest.raises(DeadlineExceededError):
            list(client.watch("mine", timeout=0.02))
    async with AsyncClient(server.target, timeout=0.02) as other:
        async with other.watch("mine") as second:
            await anext(second)
            asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(second.aclose()))
            assert [event async for event in second] == []
        with pytest.raises(DeadlineExceededError):
            [event async for event in other.watch("mine", timeout=0.02)]


async def test_a_client_that_is_closed_ends_its_watches(server: FakeServer) -> None:
    server.events = [BEGUN]
    client = Client(server.target)
    watch = client.watch("mine")
    next(watch)
    threading.Timer(0.05, client.close).start()
    with pytest.raises(RequestCancelledError, match="the client was closed"):
        await asyncio.to_thread(next, watch)
    other = AsyncClient(server.target)
    second = other.watch("mine")
    await anext(second)
    waiting = asyncio.create_task(anext(second))
    await turns()
    await other.close()
    with pytest.raises(RequestCancelledError, match="the client was closed"):
        await waiting
