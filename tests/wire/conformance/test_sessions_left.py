"""On the real service, the sessions of a client that leaves follow their disconnect policy, however the client
leaves."""

from __future__ import annotations

import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2
from examples.local_service import LocalService
from tests.waiting import wait_until
from tests.wire.conformance.http2 import Answer, Connection, call_headers, message_frame
from tests.wire.conformance.leaving import WAYS

STREAM = call_headers("/carousel.v1.Inference/Stream")
HELD = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD)


def sent(session_id: str, **request: object) -> bytes:
    """Returns a framed request of a stream."""
    message = pb.StreamRequest(session_id=session_id, **request)  # type: ignore[arg-type]
    return message_frame(message.SerializeToString())


def opened(one: Connection, session_id: str, **fields: object) -> int:
    """Opens a stream with a session. Returns the stream's number."""
    stream = one.start(STREAM)
    one.data(stream, sent(session_id, open=pb.Open(model="tiny-endless", **fields)))  # type: ignore[arg-type]
    answer = one.wait_for_data(stream, 1)
    assert pb.StreamResponse.FromString(answer.messages[0]).HasField("opened")
    return stream


def asked(carousel: LocalService, session_id: str) -> Answer:
    """Returns the service's response to `Sessions.Get`."""
    request = sessions_pb2.SessionsGetRequest(session_id=session_id)
    with Connection(carousel.target) as one:
        return one.ask(call_headers("/carousel.v1.Sessions/Get"), message_frame(request.SerializeToString()))


@pytest.mark.parametrize("does_generate", [False, True], ids=["idle", "generating"])
@pytest.mark.parametrize("way", WAYS)
def test_a_session_ends_with_its_client(carousel: LocalService, way: str, *, does_generate: bool) -> None:
    name = f"ends-{way}-{does_generate}"
    with Connection(carousel.target, window_bytes=20_000) as one:
        stream = opened(one, name)
        assert asked(carousel, name).status == 0
        if does_generate:
            one.data(stream, sent(name, generate=pb.Generate(decoding=pb.Decoding(max_tokens=60_000))))
            one.wait_for_data(stream, 5000)
        WAYS[way](one, stream)
        wait_until(lambda: asked(carousel, name).status == 5)


@pytest.mark.parametrize("way", WAYS)
def test_a_session_with_policy_hold_is_held(carousel: LocalService, way: str) -> None:
    name = f"held-{way}"
    with Connection(carousel.target) as one, Connection(carousel.target) as other:
        stream = opened(one, name, on_disconnect=HELD)
        one.data(stream, sent(name, feed=pb.Feed(token_ids=[5, 6])))
        answer = one.answer_with(stream, 2)
        assert pb.StreamResponse.FromString(answer.messages[1]).position == 2
        WAYS[way](one, stream)
        again = other.start(STREAM)
        other.data(again, sent(name, open=pb.Open(resume=pb.Resume())))
        answer = other.answer_with(again, 1)
        resumed = pb.StreamResponse.FromString(answer.messages[0])
        assert (resumed.HasField("opened"), resumed.position) == (True, 2)
        other.data(again, sent(name, close=pb.Close()), is_last=True)
        assert other.answer(again).status == 0


def test_a_stream_that_is_half_closed_has_its_answers(carousel: LocalService) -> None:
    with Connection(carousel.target) as one:
        stream = opened(one, "half-closed")
        feeds = b"".join(sent("half-closed", feed=pb.Feed(token_ids=[5], position=at)) for at in range(10))
        one.data(stream, feeds, is_last=True)
        answer = one.answer(stream)
        positions = [pb.StreamResponse.FromString(message).position for message in answer.messages]
        assert (positions, answer.status) == (list(range(11)), 0)


def test_an_invalid_message_ends_only_its_stream(carousel: LocalService) -> None:
    with Connection(carousel.target) as one:
        broken, whole = opened(one, "broken"), opened(one, "whole")
        one.data(broken, message_frame(b"\xff\xff"))
        answer = one.answer(broken)
        assert (answer.status, answer.message) == (
            3,
            "a message cannot be decoded as a StreamRequest: the stream ends",
        )
        one.data(whole, sent("whole", feed=pb.Feed(token_ids=[5])), is_last=True)
        assert one.answer(whole).status == 0
