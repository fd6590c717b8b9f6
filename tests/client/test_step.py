"""`Client.step` in both clients: what it sends, what it returns, and when it retries."""

from __future__ import annotations

from typing import Any

import pytest

from carousel import (
    CloseReason,
    InvalidArgumentError,
    PositionMismatchError,
    RestoredFrom,
    SessionStep,
    StepOutput,
    Token,
    UnavailableError,
)
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb

from .fake_server import FakeServer
from .shells import Shell

LEAVING = error_pb2.Error(code=14, message="it leaves", reason="SHUTTING_DOWN")
MOVED = error_pb2.Error(code=10, message="it has moved", reason="SESSION_MOVED")


async def test_a_call_that_opens_sends_what_it_is_given(shell: Shell, server: FakeServer) -> None:
    step = await shell.step("mine", ["A", "B"], model="toy", source="ab", version=3, position=0, top_k=2, mark=True)
    (request,) = server.steps
    hold = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD)
    assert request == pb.StepRequest(
        session_id="mine",
        open=pb.Open(model="toy", version=3, source=pb.Sequence(text="ab"), on_disconnect=hold),
        feed=pb.Feed(
            tokens=["A", "B"], position=0, mark=True, outputs=pb.OutputSpec(kind=pb.OUTPUT_KIND_TOP_K, top_k=2)
        ),
    )
    assert server.metadata["x-session-id"] == "mine"
    assert step == SessionStep(
        7,
        (StepOutput(7, (Token(3, "B"),)),),
        replayed=True,
        session_id="mine",
        model="toy",
        version=3,
        variant="fp32",
        durability="strict",
        restored_from=RestoredFrom.UNSPECIFIED,
        checkpoint_position=6,
    )
    assert step.token.text == "B"


async def test_a_call_without_a_model_goes_on_with_the_session(shell: Shell, server: FakeServer) -> None:
    step = await shell.step("mine", close=True)
    assert server.steps == [pb.StepRequest(session_id="mine", close=True)]
    assert (step.restored_from, step.closed, step.outputs) == (RestoredFrom.STORE, CloseReason.CLIENT, ())


async def test_an_opening_gets_an_id_and_may_ask_what_comes_first(shell: Shell, server: FakeServer) -> None:
    step = await shell.step(model="toy", top_k=1, on_disconnect="keep", hold_s=1.5, durability="none")
    (request,) = server.steps
    assert request.session_id == step.session_id == server.metadata["x-session-id"]
    assert len(step.session_id) == 12
    assert request.open.outputs.top_k == 1
    assert request.open.durability == pb.DURABILITY_NONE
    assert request.open.on_disconnect.action == pb.DISCONNECT_ACTION_KEEP
    assert request.open.on_disconnect.duration.ToMilliseconds() == 1500
    assert step.first == StepOutput(0, (Token(2, "A"),))


@pytest.mark.parametrize("failure", [LEAVING, MOVED])
@pytest.mark.parametrize("options", [{"tokens": "A", "position": 3}, {"close": True}, {}])
@pytest.mark.usefixtures("without_delays")
async def test_an_idempotent_call_is_retried(
    shell: Shell, server: FakeServer, failure: error_pb2.Error, options: dict[str, Any]
) -> None:
    server.failures = [(0, failure)] * 2
    assert (await shell.step("mine", **options)).position == 7
    assert server.steps == [server.steps[0]] * 3


async def test_a_feed_without_a_position_is_not_sent_again(shell: Shell, server: FakeServer) -> None:
    server.failures = [(0, LEAVING)]
    with pytest.raises(UnavailableError, match="it leaves"):
        await shell.step("mine", "A")
    assert len(server.steps) == 1


async def test_a_refusal_is_raised_at_once(shell: Shell, server: FakeServer) -> None:
    server.failures = [(0, error_pb2.Error(code=9, reason="POSITION_MISMATCH", metadata={"position": "4"}))]
    with pytest.raises(PositionMismatchError) as wrong:
        await shell.step("mine", "A", position=3)
    assert wrong.value.metadata["position"] == "4"


async def test_conflicting_arguments_are_refused_before_sending(shell: Shell, server: FakeServer) -> None:
    with pytest.raises(TypeError, match="source, version: also give `model`, which opens the session"):
        await shell.step("mine", source="ab", version=3)
    with pytest.raises(TypeError, match="give tokens or features, not both"):
        await shell.step("mine", "A", features=[1.0])
    with pytest.raises(TypeError, match="positon: no such option"):
        await shell.step("mine", "A", positon=3)
    with pytest.raises(TypeError, match="position, mark: also give tokens or features"):
        await shell.step("mine", position=0, mark=True)
    with pytest.raises(
        TypeError, match="top_k, trace: also give tokens or features, or `model`, which opens the session"
    ):
        await shell.step("mine", top_k=3, trace=True)
    with pytest.raises(InvalidArgumentError, match=r"feed\.position = -1 must be 0 to"):
        await shell.step("mine", "A", position=-1)
    assert not server.steps
