"""The client side of a batch, without a server: its places and positions, and responses in any order."""

from __future__ import annotations

import pytest

from carousel import InvalidArgumentError, NotFoundError, PositionMismatchError, UnavailableError
from carousel._batch import BatchProtocol
from carousel._batch_step import StepBatchResult
from carousel._exchange import Exchange, LostError, RepeatError
from carousel._requests import SessionPolicy, step_batch_message
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb


def run(protocol: BatchProtocol, conversation: Exchange[object], *responses: pb.StreamResponse) -> object:
    """Runs a conversation with these responses. Returns its result. The conversation must read every response."""
    left = list(responses)
    try:
        assert next(conversation) is None
        while True:
            response = left.pop(0)
            protocol.recovery.received(response)
            assert conversation.send(response) is None
    except StopIteration as end:
        assert not left
        return end.value


def opened(*handles: int) -> BatchProtocol:
    protocol = BatchProtocol(SessionPolicy("hold", None, None, unattended=False), 60.0)
    for handle in handles:
        request = protocol.open(pb.Open(model="toy"), "")
        answer = pb.StreamResponse(
            request_id=request.request_id, session_id=request.session_id, opened=pb.Opened(handle=handle)
        )
        run(protocol, protocol.opened(request.request_id), answer)
    return protocol


def positions(protocol: BatchProtocol) -> list[int]:
    return [member.position for member in protocol.recovery.members]


def send(protocol: BatchProtocol, tokens: list[int] | list[list[int]], *places: int) -> pb.StreamRequest:
    message = step_batch_message(
        [protocol.recovery.members[place].handle for place in places],
        tokens,
        [protocol.recovery.members[place].position for place in places],
        top_k=None,
        logits=False,
        outputs=True,
    )
    return protocol.step_batch(message, places)


def answer(request: pb.StreamRequest, positions: list[int], **errors: int) -> pb.StreamResponse:
    """Returns the response to a step batch. errors: the gRPC code of each refused row, by `_` and the row's index."""
    refused = [
        pb.BatchError(index=int(index[1:]), error=error_pb2.Error(code=code, message="no"))
        for index, code in errors.items()
    ]
    stepped = pb.BatchStepped(positions=positions, token_ids=[9] * len(positions), errors=refused)
    return pb.StreamResponse(request_id=request.request_id, batch_stepped=stepped)


def test_a_step_batch_has_positions_that_include_requests_in_flight() -> None:
    protocol = opened(7, 5, 6)
    first = send(protocol, [1, 1, 1], 0, 1, 2)
    second = send(protocol, [[2, 2], [2]], 2, 0)
    third = send(protocol, [3, 3, 3], 2, 1, 0)
    assert list(first.step_batch.positions) == [0, 0, 0]
    assert (list(second.step_batch.handles), list(second.step_batch.positions)) == ([6, 7], [1, 1])
    assert (list(second.step_batch.counts), list(second.step_batch.token_ids)) == ([2, 1], [2, 2, 2])
    assert list(third.step_batch.positions) == [3, 1, 2]
    assert protocol.num_in_flight == 3


def test_responses_are_returned_in_the_order_of_the_step_batches() -> None:
    protocol = opened(1, 2)
    first, second = send(protocol, [4], 0), send(protocol, [4], 1)
    step = run(protocol, protocol.stepped(), answer(second, [1]), answer(first, [1]))
    assert isinstance(step, StepBatchResult)
    assert (step.places, step.positions, step.token_ids) == ((0,), (1,), (9,))
    step = run(protocol, protocol.stepped())
    assert isinstance(step, StepBatchResult)
    assert step.places == (1,)
    with pytest.raises(LookupError, match="no step is in flight"):
        run(protocol, protocol.stepped())


def test_a_refused_row_has_its_error_and_continues_from_its_position() -> None:
    protocol = opened(1, 2, 3)
    first, second = send(protocol, [4, 99], 2, 1), send(protocol, [4, 4], 2, 1)
    step = run(protocol, protocol.stepped(), answer(first, [1, 0], _1=3))
    assert isinstance(step, StepBatchResult)
    assert {place: type(error) for place, error in step.errors.items()} == {1: InvalidArgumentError}
    mismatch = answer(second, [2, 0], _1=9)
    mismatch.batch_stepped.errors[0].error.reason = "POSITION_MISMATCH"
    mismatch.batch_stepped.errors[0].error.metadata["position"] = "0"
    step = run(protocol, protocol.stepped(), mismatch)
    assert isinstance(step, StepBatchResult)
    assert isinstance(step.errors[1], PositionMismatchError)
    assert positions(protocol) == [0, 0, 2]
    assert list(send(protocol, [4, 4], 2, 1).step_batch.positions) == [2, 0]


def test_a_refused_step_batch_changes_no_position() -> None:
    protocol = opened(1, 2)
    request = send(protocol, [[4, 4], [5]], 0, 1)
    refused = pb.StreamResponse(request_id=request.request_id, error=error_pb2.Error(code=3, message="bad"))
    with pytest.raises(InvalidArgumentError, match="bad"):
        run(protocol, protocol.stepped(), refused)
    assert positions(protocol) == [0, 0]
    assert not protocol.num_in_flight


def test_a_response_can_be_awaited_again_after_a_timeout() -> None:
    protocol = opened(1)
    request = send(protocol, [4], 0)
    given_up = protocol.stepped()
    next(given_up)
    given_up.close()
    assert protocol.num_in_flight == 1
    assert isinstance(run(protocol, protocol.stepped(), answer(request, [1])), StepBatchResult)


def test_nothing_is_sent_on_a_stream_that_was_lost() -> None:
    protocol = opened(1)
    protocol.lost(UnavailableError("gone"))
    with pytest.raises(UnavailableError, match="gone"):
        send(protocol, [4], 0)


def test_tokens_that_do_not_fit_are_refused_before_they_are_sent() -> None:
    protocol = opened(1, 2)
    with pytest.raises(InvalidArgumentError, match="tokens for 1 sessions, but the step has 2"):
        send(protocol, [4], 0, 1)
    with pytest.raises(InvalidArgumentError, match=r"step_batch.token_ids\[1\] = -1 must be 0 to"):
        send(protocol, [4, -1], 0, 1)
    assert positions(protocol) == [0, 0]


OPENED_AGAIN = {"a": 5, "b": 4}
"""The handles of the sessions on the new stream."""


def resumed(protocol: BatchProtocol, **positions: int) -> list[pb.StreamRequest]:
    """Loses the stream and resumes the sessions at these positions, by session; -1: it cannot be resumed. Returns the
    requests that follow. `replays` then has the feeds of restored sessions."""
    protocol.recovery.stream_ended(UnavailableError("lost"))
    asked: list[pb.StreamRequest] = []
    exchange = protocol.resume(asked.append)
    replays.clear()
    response: pb.StreamResponse | None = None
    try:
        next(exchange)
        while True:
            request = asked.pop(0)
            name = request.session_id
            response = pb.StreamResponse(
                request_id=request.request_id, session_id=name, position=max(0, positions[name])
            )
            if request.HasField("feed"):
                replays.append((name, request.feed.position, list(request.feed.token_ids)))
                response.fed.SetInParent()
            elif positions[name] < 0:
                response.error.CopyFrom(error_pb2.Error(code=5, message="gone", metadata={"close_reason": "idle"}))
            else:
                response.opened.handle = OPENED_AGAIN[name]
                response.opened.restored_from = pb.RESTORED_FROM_STORE
            exchange.send(response)
    except StopIteration as end:
        found: list[pb.StreamRequest] = end.value
        return found


replays: list[tuple[str, int, list[int]]] = []


def two(durability: pb.Durability.ValueType = pb.DURABILITY_CHECKPOINT) -> BatchProtocol:
    """Returns a batch of the sessions a and b, with the handles 4 and 5."""
    protocol = BatchProtocol(SessionPolicy("hold", None, None, unattended=False), 60.0)
    for handle, name in ((4, "a"), (5, "b")):
        request = protocol.open(pb.Open(model="toy"), name)
        opened = pb.Opened(handle=handle, durability=durability)
        response = pb.StreamResponse(request_id=request.request_id, session_id=name, opened=opened)
        response.checkpoint_position = 0
        run(protocol, protocol.opened(request.request_id), response)
    return protocol


def sent(protocol: BatchProtocol, tokens: list[int] | list[list[int]], *places: int) -> pb.StreamRequest:
    request = send(protocol, tokens, *places)
    assert protocol.recovery.register(request)
    return request


def test_rows_without_an_answer_are_sent_again_with_the_new_handles_after_a_replay() -> None:
    protocol = two()
    first = sent(protocol, [7, 8], 0, 1)
    run(protocol, protocol.stepped(), answer(first, [1, 1]))
    sent(protocol, [[1, 2], [3]], 0, 1)
    (again,) = resumed(protocol, a=0, b=1)
    assert replays == [("a", 0, [7])]
    assert (list(again.step_batch.handles), list(again.step_batch.positions)) == ([5, 4], [1, 1])
    assert (list(again.step_batch.counts), list(again.step_batch.token_ids)) == ([2, 1], [1, 2, 3])
    step = run(protocol, protocol.stepped(), answer(again, [3, 2]))
    assert isinstance(step, StepBatchResult)
    assert (step.positions, step.errors) == ((3, 2), {})


def test_a_session_stored_within_its_row_gets_the_remaining_tokens() -> None:
    protocol = two()
    sent(protocol, [[1, 2, 3], [4]], 0, 1)
    (again,) = resumed(protocol, a=2, b=0)
    assert (list(again.step_batch.positions), list(again.step_batch.token_ids)) == ([2, 0], [3, 4])
    step = run(protocol, protocol.stepped(), answer(again, [3, 1]))
    assert isinstance(step, StepBatchResult)
    assert (step.positions, positions(protocol)) == ((3, 1), [3, 1])


def test_a_row_whose_response_was_lost_is_counted_and_marked() -> None:
    protocol = two()
    sent(protocol, [7, 8], 0, 1)
    (again,) = resumed(protocol, a=1, b=0)
    refused = answer(again, [1, 1], _0=9)
    refused.batch_stepped.errors[0].error.reason = "POSITION_MISMATCH"
    refused.batch_stepped.errors[0].error.metadata["position"] = "1"
    step = run(protocol, protocol.stepped(), refused)
    assert isinstance(step, StepBatchResult)
    assert {place: error.reason for place, error in step.errors.items()} == {0: "OUTPUTS_LOST"}
    assert (step.positions, positions(protocol)) == ((1, 1), [1, 1])
    sent(protocol, [9, 9], 0, 1)
    resumed(protocol, a=0, b=0)
    assert replays == [("a", 0, [7]), ("b", 0, [8])]


def test_a_session_that_cannot_be_resumed_fails_alone_and_its_old_handle_is_not_used() -> None:
    """On the new stream, another session has its old handle."""
    protocol = two()
    sent(protocol, [7, 8], 0, 1)
    (again,) = resumed(protocol, a=-1, b=0)
    assert (list(again.step_batch.handles), list(again.step_batch.token_ids)) == ([4], [8])
    step = run(protocol, protocol.stepped(), answer(again, [1]))
    assert isinstance(step, StepBatchResult)
    assert (list(step.errors), step.positions, step.token_ids) == ([0], (0, 1), (0, 9))
    later = sent(protocol, [7, 8], 0, 1)
    assert list(later.step_batch.handles) == [2**32 - 1, 4]
    step = run(protocol, protocol.stepped(), answer(later, [0, 2], _0=9))
    assert isinstance(step, StepBatchResult)
    assert isinstance(step.errors[0], NotFoundError)


def test_a_step_batch_that_was_not_stored_is_repeated_unchanged() -> None:
    protocol = two(pb.DURABILITY_STRICT)
    request = sent(protocol, [7, 8], 0, 1)
    refused = answer(request, [0, 1], _0=14)
    refused.batch_stepped.errors[0].error.reason = "STORE_UNAVAILABLE"
    with pytest.raises(RepeatError) as raised:
        protocol.recovery.received(refused)
    assert raised.value.request == request
    step = run(protocol, protocol.stepped(), answer(request, [1, 1]))
    assert isinstance(step, StepBatchResult)
    assert (step.positions, step.errors) == ((1, 1), {})


def test_after_go_away_the_client_leaves_when_all_requests_are_answered() -> None:
    protocol = two()
    request = sent(protocol, [7, 8], 0, 1)
    assert not protocol.recovery.received(pb.StreamResponse(go_away=pb.GoAway()))
    held = send(protocol, [7, 8], 0, 1)
    assert not protocol.recovery.register(held)
    with pytest.raises(LostError):
        protocol.recovery.received(answer(request, [1, 1]))
    run(protocol, protocol.stepped())
    (again,) = resumed(protocol, a=1, b=1)
    assert (again.request_id, list(again.step_batch.positions)) == (held.request_id, [1, 1])


@pytest.mark.parametrize("durability", [pb.DURABILITY_CHECKPOINT, pb.DURABILITY_STRICT, pb.DURABILITY_NONE])
def test_the_replay_history_is_bounded(durability: pb.Durability.ValueType) -> None:
    """Responses do not report checkpoints, so the client asks for them, once in about 900 tokens."""
    protocol = two(durability)
    num_asked = most = 0
    for index in range(2400):
        for question in protocol.recovery.questions():
            num_asked += 1
            found = pb.StreamResponse(request_id=question.request_id, session_id=question.session_id)
            found.opened.handle = 1
            found.checkpoint_position = index - 20
            protocol.recovery.received(found)
        run(protocol, protocol.stepped(), answer(sent(protocol, [7, 8], 0, 1), [index + 1, index + 1]))
        most = max(most, *(member.recovery.num_kept for member in protocol.recovery.members))
    assert most <= 1300
    assert num_asked == (4 if durability == pb.DURABILITY_CHECKPOINT else 0)
    assert protocol.recovery.members[0].handle == 4
