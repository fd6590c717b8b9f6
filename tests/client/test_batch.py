"""The batch's half of the conversation, without a server: places, positions, and answers in any order."""

from __future__ import annotations

import pytest

from carousel import InvalidArgumentError, PositionMismatchError, UnavailableError
from carousel._batch import BatchProtocol
from carousel._batch_step import StepBatchResult
from carousel._exchange import Exchange
from carousel._requests import SessionPolicy, step_batch_message
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb


def run(protocol: BatchProtocol, conversation: Exchange[object], *responses: pb.StreamResponse) -> object:
    """Carries a conversation out; every response must be read."""
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
    """errors: codes by place."""
    refused = [
        pb.BatchError(index=int(index[1:]), error=error_pb2.Error(code=code, message="no"))
        for index, code in errors.items()
    ]
    stepped = pb.BatchStepped(positions=positions, token_ids=[9] * len(positions), errors=refused)
    return pb.StreamResponse(request_id=request.request_id, batch_stepped=stepped)


def test_a_frame_says_where_its_sessions_are_with_those_in_flight_counted() -> None:
    protocol = opened(7, 5, 6)
    first = send(protocol, [1, 1, 1], 0, 1, 2)
    second = send(protocol, [[2, 2], [2]], 2, 0)
    third = send(protocol, [3, 3, 3], 2, 1, 0)
    assert list(first.step_batch.positions) == [0, 0, 0]
    assert (list(second.step_batch.handles), list(second.step_batch.positions)) == ([6, 7], [1, 1])
    assert (list(second.step_batch.counts), list(second.step_batch.token_ids)) == ([2, 1], [2, 2, 2])
    assert list(third.step_batch.positions) == [3, 1, 2]
    assert protocol.num_in_flight == 3


def test_answers_are_taken_in_the_order_of_the_frames_however_they_come() -> None:
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


def test_a_row_that_is_refused_is_told_of_by_its_place_and_goes_on_from_where_it_is() -> None:
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


def test_a_frame_that_is_refused_as_a_whole_moves_nobody() -> None:
    protocol = opened(1, 2)
    request = send(protocol, [[4, 4], [5]], 0, 1)
    refused = pb.StreamResponse(request_id=request.request_id, error=error_pb2.Error(code=3, message="bad"))
    with pytest.raises(InvalidArgumentError, match="bad"):
        run(protocol, protocol.stepped(), refused)
    assert positions(protocol) == [0, 0]
    assert not protocol.num_in_flight


def test_an_answer_that_was_waited_for_in_vain_can_be_waited_for_again() -> None:
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
    with pytest.raises(InvalidArgumentError, match="tokens for 1 sessions, and 2 sessions"):
        send(protocol, [4], 0, 1)
    with pytest.raises(InvalidArgumentError, match="Value out of range"):
        send(protocol, [4, -1], 0, 1)
    assert positions(protocol) == [0, 0]
