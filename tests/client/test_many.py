"""Many generations on one stream: which requests are sent, and which results leave, in which order."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from carousel import InvalidArgumentError, SessionClosedError, UnavailableError
from carousel._many import ManyGenerations
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb

FULL = error_pb2.Error(code=8, message="full", reason="TOO_MANY_SESSIONS", retry_delay=Duration(seconds=1))
REFUSED = error_pb2.Error(code=3, message="open.source is wrong", reason="INVALID_FIELD", field="open.source")


def protocol() -> ManyGenerations:
    return ManyGenerations(pb.Open(model="toy", version=3), pb.Decoding(max_tokens=9))


def generated(request: pb.StreamRequest, *texts: str, is_last: bool = True, before: int = 0) -> pb.StreamResponse:
    answer = pb.Generated(tokens=[pb.Token(id=len(text), text=text) for text in texts])
    if is_last:
        answer.finish_reason = pb.FINISH_REASON_EOS
    return pb.StreamResponse(
        request_id=request.request_id,
        session_id=request.session_id,
        position=before + len(texts),
        generated=answer,
    )


def failed(request: pb.StreamRequest, error: error_pb2.Error) -> pb.StreamResponse:
    return pb.StreamResponse(request_id=request.request_id, session_id=request.session_id, error=error)


def test_a_source_is_opened_and_generated_at_once_and_closed_when_it_is_complete() -> None:
    many = protocol()
    opening, generate = many.add("ab")
    assert (opening.open.model, opening.open.version, opening.open.source.text) == ("toy", 3, "ab")
    assert generate.generate.decoding.max_tokens == 9
    assert opening.session_id == generate.session_id != ""
    assert many.receive(generated(generate, "A", is_last=False)) == []
    assert list(many.take()) == []
    (closing,) = many.receive(generated(generate, "B", before=1))
    assert closing.HasField("close")
    assert closing.session_id == opening.session_id
    (result,) = many.take()
    assert (result.source, [token.text for token in result.tokens], result.error) == ("ab", ["A", "B"], None)
    assert (many.num_entries, many.num_in_flight, many.num_done) == (0, 0, 1)


def test_results_leave_in_the_order_of_the_sources() -> None:
    many = protocol()
    (_, first), (_, second) = many.add("a"), many.add("b")
    assert first.session_id != second.session_id
    many.receive(generated(second, "B"))
    assert list(many.take()) == []
    many.receive(generated(first, "A"))
    assert [result.source for result in many.take()] == ["a", "b"]


def test_a_refused_source_has_its_error_and_the_others_go_on() -> None:
    many = protocol()
    (opening, generate), (_, other) = many.add("a"), many.add("b")
    many.receive(failed(opening, REFUSED))
    many.receive(failed(generate, error_pb2.Error(code=5, message="no session")))  # which the client expects
    many.receive(generated(other, "B"))
    refused, answered = many.take()
    assert isinstance(refused.error, InvalidArgumentError)
    assert refused.error.field == "open.source"
    assert refused.tokens == ()
    assert answered.error is None


def test_a_source_that_cannot_be_sent_has_its_error_in_its_place() -> None:
    many = protocol()
    _, first = many.add("a")
    assert many.add(3) == []  # type: ignore[arg-type]  # what a program may do
    many.receive(generated(first, "A"))
    assert [type(result.error) for result in many.take()] == [type(None), TypeError]


def test_what_a_full_server_refuses_is_sent_again_when_asked_for() -> None:
    many = protocol()
    (opening, generate), (_, other) = many.add("a"), many.add("b")
    many.receive(failed(opening, FULL))
    many.receive(failed(generate, error_pb2.Error(code=5, message="no session")))
    assert many.refused_by is not None
    assert many.num_in_flight == 1
    many.receive(generated(other, "B"))
    again, generate = many.repeat()
    assert again.open.source.text == "a"
    assert many.refused_by is None
    assert many.repeat() == []
    many.receive(generated(generate, "A"))
    assert [result.source for result in many.take()] == ["a", "b"]


def test_what_a_lost_stream_took_is_sent_again_from_its_beginning() -> None:
    many = protocol()
    (_, first), (_, second) = many.add("a"), many.add("b")
    many.receive(generated(first, "A", is_last=False))
    many.receive(generated(second, "B"))
    opening, generate = many.restart()
    assert opening.open.source.text == "a"
    assert opening.session_id not in {first.session_id, second.session_id}
    many.receive(generated(generate, "A", "A"))
    assert [len(result.tokens) for result in many.take()] == [2, 1]


def test_a_leaving_server_and_a_closed_session_are_noticed() -> None:
    many = protocol()
    _, generate = many.add("a")
    with pytest.raises(UnavailableError, match="leaving"):
        many.receive(pb.StreamResponse(go_away=pb.GoAway()))
    many.receive(
        pb.StreamResponse(session_id=generate.session_id, closed=pb.Closed(reason=pb.CLOSE_REASON_IDLE), position=1)
    )
    (result,) = many.take()
    assert isinstance(result.error, SessionClosedError)
