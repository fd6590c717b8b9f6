"""The protocol core against a fake session in memory, without gRPC, threads or time."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carousel import (
    CloseReason,
    FinishReason,
    NotFoundError,
    PositionMismatchError,
    RequestCancelledError,
    SessionClosedError,
    Token,
    UnavailableError,
    _requests,
)
from carousel._exchange import Exchange
from carousel._generation import GenerationState
from carousel._protocol import SessionProtocol
from carousel.v1 import inference_pb2 as pb

from .fake_session import FakeSession

T = TypeVar("T")


class Wire:
    """Joins the client's protocol and the fake session. `inbox` keeps responses until a conversation waits for one."""

    def __init__(self) -> None:
        self.server = FakeSession()
        self.inbox: deque[pb.StreamResponse] = deque()
        self.sent: list[pb.StreamRequest] = []

    def run(self, conversation: Exchange[T], patience: int = 1_000) -> T:
        """Runs a conversation and returns its result. Raises TimeoutError, as a deadline would, when it needs more than
        `patience` responses."""
        try:
            request = next(conversation)
            while True:
                if request is not None:
                    self.sent.append(pb.StreamRequest.FromString(request.SerializeToString()))
                    self.inbox += self.server.handle(self.sent[-1])
                if patience == 0:
                    raise TimeoutError
                patience -= 1
                request = conversation.send(self.inbox.popleft())
        except StopIteration as end:
            result: T = end.value
            return result


def feed(*ids: int, outputs: bool = True) -> pb.Feed:
    return _requests.feed_message(ids, top_k=None, logits=False, outputs=outputs, every_position=False)


def opened(source: str = "ab") -> tuple[Wire, SessionProtocol]:
    wire, protocol = Wire(), SessionProtocol()
    message = _requests.open_message("toy", source=source, version=0, variant="", first=False, top_k=None, logits=False)
    wire.run(protocol.open(message))
    return wire, protocol


def test_requests_are_numbered_from_one_and_name_the_session() -> None:
    wire, protocol = opened()
    wire.run(protocol.feed(feed(2)))
    wire.run(protocol.close())
    assert [request.request_id for request in wire.sent] == [1, 2, 3]
    assert [request.session_id for request in wire.sent] == ["", "made-by-server", "made-by-server"]


def test_each_feed_starts_where_the_last_one_ended() -> None:
    wire, protocol = opened()
    wire.run(protocol.feed(feed(2, 3, 4)))
    step = wire.run(protocol.feed(feed(5)))
    assert [request.feed.position for request in wire.sent[1:]] == [0, 3]
    assert step.position == protocol.position == 4


def test_a_refused_feed_leaves_the_position() -> None:
    wire, protocol = opened()
    with pytest.raises(Exception, match="feed is empty"):
        wire.run(protocol.feed(feed()))
    assert protocol.position == 0
    assert wire.run(protocol.feed(feed(2))).position == 1


def test_a_feed_repeated_after_a_timeout_is_applied_once() -> None:
    wire, protocol = opened()
    with pytest.raises(TimeoutError):
        wire.run(protocol.feed(feed(2, 3)), patience=0)
    step = wire.run(protocol.feed(feed(2, 3)))
    assert step.replayed
    assert step.position == protocol.position == 2
    assert wire.server.consumed == [2, 3]


def test_another_feed_in_place_of_one_given_up_is_refused_and_tells_the_position() -> None:
    wire, protocol = opened()
    with pytest.raises(TimeoutError):
        wire.run(protocol.feed(feed(2, 3)), patience=0)
    with pytest.raises(PositionMismatchError) as caught:
        wire.run(protocol.feed(feed(4)))
    assert caught.value.expected_position == protocol.position == 2
    wire.run(protocol.feed(feed(4)))
    assert wire.server.consumed == [2, 3, 4]


def test_answers_in_any_order_find_their_requests() -> None:
    wire, protocol = opened()
    with pytest.raises(TimeoutError):
        wire.run(protocol.feed(feed(2)), patience=0)
    late = wire.inbox.popleft()
    step = wire.run(protocol.feed(feed(2)))
    wire.inbox.append(late)
    assert wire.run(protocol.feed(feed(3))).position == step.position + 1 == 2


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 5), min_size=1, max_size=3),  # the tokens
            st.lists(st.integers(0, 3), max_size=4),  # how many responses each abandoned attempt waits for
        ),
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_every_token_is_consumed_once_after_any_timeouts_and_retries(
    feeds: list[tuple[list[int], list[int]]], random: Random
) -> None:
    wire, protocol = opened()
    wanted: list[int] = []
    for tokens, patiences in feeds:
        for patience in [*patiences, 1_000]:
            random.shuffle(wire.inbox)  # responses to abandoned feeds arrive in any order
            try:
                step = wire.run(protocol.feed(feed(*tokens)), patience)
            except TimeoutError:
                continue
            break
        wanted += tokens
        assert step.position == protocol.position == len(wanted)
    assert wire.server.consumed == wanted
    assert wire.server.num_applied == len(feeds)


def take_all(wire: Wire, protocol: SessionProtocol, state: GenerationState, decoding: pb.Decoding) -> list[str]:
    texts: list[str] = []
    while True:
        while not state.is_ready:
            wire.run(protocol.pull(state, decoding))
        token = state.take()
        if token is None:
            return texts
        assert isinstance(token, Token)
        texts.append(token.text)


def test_a_generation_goes_on_from_where_the_session_is() -> None:
    wire, protocol = opened()
    wire.run(protocol.feed(feed(2)))
    state = GenerationState(pb.Decoding())
    assert take_all(wire, protocol, state, pb.Decoding()) == ["B", "C", "D", "A"]
    assert state.finish_reason is FinishReason.EOS
    assert state.position == protocol.position == 5


def test_a_generation_left_early_is_cancelled_before_anything_else() -> None:
    wire, protocol = opened("stall")
    state = GenerationState(pb.Decoding())
    wire.run(protocol.pull(state, pb.Decoding()))
    wire.run(protocol.leave(state))
    assert protocol.position == 3
    assert state.finish_reason is None
    assert state.take() is None
    assert wire.run(protocol.feed(feed(2))).position == 4
    assert [request.WhichOneof("request") for request in wire.sent] == ["open", "generate", "cancel", "feed"]


def test_a_generation_begun_while_another_goes_on_ends_that_one() -> None:
    wire, protocol = opened("stall")
    first, second = GenerationState(pb.Decoding()), GenerationState(pb.Decoding())
    wire.run(protocol.pull(first, pb.Decoding()))
    wire.run(protocol.pull(second, pb.Decoding()))
    assert [request.WhichOneof("request") for request in wire.sent] == ["open", "generate", "cancel", "generate"]
    assert first.is_ended
    assert not second.is_ended
    assert second.position == 4


def test_the_answer_to_a_cancellation_tells_the_position_whatever_came_before_it() -> None:
    wire, protocol = opened("stall")
    state = GenerationState(pb.Decoding())
    wire.run(protocol.pull(state, pb.Decoding()))
    wire.inbox.clear()
    leaving = protocol.leave(state)
    cancel = next(leaving)
    assert cancel is not None
    with pytest.raises(StopIteration):
        leaving.send(pb.StreamResponse(request_id=cancel.request_id, position=3, cancelled=pb.Cancelled()))
    assert protocol.position == state.position == 3


def test_leaving_an_unstarted_generation_sends_nothing() -> None:
    wire, protocol = opened()
    wire.run(protocol.leave(GenerationState(pb.Decoding())))
    assert len(wire.sent) == 1


def test_a_feed_ends_a_running_generation_and_its_next_read_reports_it() -> None:
    wire, protocol = opened("stall")
    state = GenerationState(pb.Decoding())
    wire.run(protocol.pull(state, pb.Decoding()))
    assert wire.run(protocol.feed(feed(2))).position == 4
    assert [state.take() for _ in range(3)] != [None] * 3
    with pytest.raises(RequestCancelledError, match="cancelled at position 3"):
        state.take()
    assert state.take() is None


def test_the_next_call_resumes_an_abandoned_wait_for_a_cancellation() -> None:
    wire, protocol = opened("stall")
    state = GenerationState(pb.Decoding())
    wire.run(protocol.pull(state, pb.Decoding()))
    with pytest.raises(TimeoutError):
        wire.run(protocol.leave(state), patience=0)
    with pytest.raises(TimeoutError):
        wire.run(protocol.feed(feed(2)), patience=1)
    assert wire.run(protocol.feed(feed(2))).position == 4
    assert [request.WhichOneof("request") for request in wire.sent] == ["open", "generate", "cancel", "feed"]


def test_a_generation_that_ended_while_it_was_cancelled_keeps_its_tokens_and_its_end() -> None:
    wire, protocol = opened()
    state = GenerationState(pb.Decoding())
    wire.run(protocol.pull(state, pb.Decoding(max_tokens=2)))
    assert wire.run(protocol.feed(feed(2))).position == 3
    assert take_all(wire, protocol, state, pb.Decoding()) == ["A", "B"]
    assert state.finish_reason is FinishReason.MAX_TOKENS
    assert state.position == 2


def test_a_notice_that_the_session_was_closed_ends_every_later_call() -> None:
    wire, protocol = opened()
    wire.run(protocol.feed(feed(2)))
    wire.inbox.append(wire.server.evict())
    for _ in range(2):
        with pytest.raises(SessionClosedError, match=r"closed \(idle\) at position 1") as caught:
            wire.run(protocol.feed(feed(3)))
    assert (caught.value.close_reason, caught.value.position) == (CloseReason.IDLE, 1)
    assert protocol.is_closed
    assert [request.WhichOneof("request") for request in wire.sent] == ["open", "feed", "feed"]
    wire.run(protocol.close())


def test_notices_that_this_client_does_not_know_are_ignored() -> None:
    wire, protocol = opened()
    wire.inbox.append(pb.StreamResponse(session_id=protocol.id, position=9))
    assert wire.run(protocol.feed(feed(2))).position == 1


def test_a_lost_stream_is_raised_by_each_call_with_its_first_cause() -> None:
    wire, protocol = opened()
    protocol.lost(UnavailableError("gone"))
    protocol.lost(UnavailableError("another"))
    for conversation in (protocol.feed(feed(2)), protocol.pull(GenerationState(pb.Decoding()), pb.Decoding())):
        with pytest.raises(UnavailableError, match="gone"):
            wire.run(conversation)
    assert len(wire.sent) == 1


def test_calls_after_close_say_that_the_client_closed_the_session() -> None:
    wire, protocol = opened()
    wire.run(protocol.close())
    with pytest.raises(SessionClosedError, match=r"closed \(client\)"):
        wire.run(protocol.feed(feed(2)))


def test_an_opening_that_is_refused_raises_why() -> None:
    wire, protocol = Wire(), SessionProtocol()
    message = _requests.open_message("none", source=None, version=0, variant="", first=False, top_k=None, logits=False)
    with pytest.raises(NotFoundError, match=r"model 'none' is unknown \[MODEL_NOT_FOUND\]"):
        wire.run(protocol.open(message))
