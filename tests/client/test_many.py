"""Many generations on one stream: which requests are sent, and in which order results are returned."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from google.protobuf.duration_pb2 import Duration

from carousel import CarouselError, InvalidArgumentError, ResourceExhaustedError, SessionClosedError, UnavailableError
from carousel._many import ManyGenerations
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb

FULL = error_pb2.Error(code=8, message="full", reason="TOO_MANY_SESSIONS", retry_delay=Duration(seconds=1))
REFUSED = error_pb2.Error(code=3, message="open.source is wrong", reason="INVALID_FIELD", field="open.source")


TOO_LARGE = ResourceExhaustedError("SERVER: Received message larger than max (6000039 vs. 4194304)")


def protocol(version: int = 3) -> ManyGenerations:
    return ManyGenerations(pb.Open(model="toy", version=version), lambda: pb.Decoding(max_tokens=9))


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


def sources(requests: Sequence[pb.StreamRequest]) -> list[str]:
    return [request.open.source.text for request in requests if request.HasField("open")]


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


def test_results_are_returned_in_the_order_of_the_sources() -> None:
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
    # the session was never opened: the client expects this
    many.receive(failed(generate, error_pb2.Error(code=5, message="no session")))
    many.receive(generated(other, "B"))
    refused, answered = many.take()
    assert isinstance(refused.error, InvalidArgumentError)
    assert refused.error.field == "open.source"
    assert refused.tokens == ()
    assert answered.error is None


def test_a_source_that_cannot_be_sent_has_its_error_in_its_place() -> None:
    many = protocol()
    _, first = many.add("a")
    assert many.add(3) == []  # type: ignore[arg-type]  # a program may pass it
    many.receive(generated(first, "A"))
    assert [type(result.error) for result in many.take()] == [type(None), TypeError]


def test_sources_that_a_full_server_refused_are_sent_again() -> None:
    many = protocol()
    (opening, generate), (_, other) = many.add("a"), many.add("b")
    many.receive(failed(opening, FULL))
    many.receive(failed(generate, error_pb2.Error(code=5, message="no session")))
    assert many.refused_by is not None
    assert many.num_in_flight == 1
    many.receive(generated(other, "B"))
    again, generate = many.proceed(2)
    assert again.open.source.text == "a"
    assert many.refused_by is None
    assert many.proceed(2) == []
    many.receive(generated(generate, "A"))
    assert [result.source for result in many.take()] == ["a", "b"]


def test_sources_of_a_lost_stream_are_sent_again_from_the_start() -> None:
    many = protocol()
    (_, first), (_, second) = many.add("a"), many.add("b")
    many.receive(generated(first, "A", is_last=False))
    many.receive(generated(second, "B"))
    opening, generate = many.restart()
    assert opening.open.source.text == "a"
    assert opening.session_id not in {first.session_id, second.session_id}
    many.receive(generated(generate, "A", "A"))
    assert [len(result.tokens) for result in many.take()] == [2, 1]


def test_a_session_whose_generation_is_refused_is_closed() -> None:
    many = protocol()
    (opening, generate), (other, _) = many.add("a"), many.add("b")
    (closing,) = many.receive(failed(generate, REFUSED))  # this may arrive before the session is open
    assert closing.HasField("close")
    assert closing.session_id == opening.session_id
    assert many.receive(failed(other, REFUSED)) == []  # there is no session to close
    assert [type(result.error) for result in many.take()] == [InvalidArgumentError] * 2


def test_a_repeated_source_uses_the_version_that_began_it() -> None:
    many = protocol(version=0)
    (opening, _), _ = many.add("a"), many.add("b")
    many.receive(
        pb.StreamResponse(
            request_id=opening.request_id, session_id=opening.session_id, opened=pb.Opened(model="toy", version=7)
        )
    )
    assert [request.open.version for request in many.restart() if request.HasField("open")] == [7, 0]
    assert many.add("c")[0].open.version == 0


def test_each_source_has_a_decoding_of_its_own() -> None:
    seeds = iter(range(9))
    many = ManyGenerations(pb.Open(model="toy"), lambda: pb.Decoding(sampling=pb.Sampling(seed=next(seeds))))
    (_, first), (_, second) = many.add("a"), many.add("b")
    assert [one.generate.decoding.sampling.seed for one in (first, second)] == [0, 1]
    assert [one.generate.decoding.sampling.seed for one in many.restart() if one.HasField("generate")] == [0, 1]


def test_sources_wait_behind_one_that_a_full_server_refused() -> None:
    """They are sent in order, one more each time another source is complete."""
    many = protocol()
    (_, first), (second, _), (third, _) = many.add("a"), many.add("b"), many.add("c")
    many.receive(failed(third, FULL))
    many.receive(failed(second, FULL))
    assert many.add("d") == []
    many.receive(generated(first, "A"))
    again = many.proceed(2)
    assert sources(again) == ["b", "c"]
    assert many.refused_by is not None
    assert many.num_waiting == 1
    assert sources(many.proceed(2)) == ["d"]
    assert many.refused_by is None
    many.receive(failed(again[2], FULL))
    assert sources(many.restart()) == ["b", "c", "d"]


def test_a_source_that_is_too_large_for_a_message_is_found_and_the_others_go_on() -> None:
    many = protocol()
    for source in ("a", "large", "b"):
        many.add(source)
    assert many.mark_suspects(TOO_LARGE)
    opening, generate = many.restart()
    assert opening.open.source.text == "a"
    assert many.add("c") == []
    many.receive(generated(generate, "A"))
    opening, _ = many.proceed(2)
    assert opening.open.source.text == "large"
    assert many.mark_suspects(TOO_LARGE)
    opening, generate = many.restart()
    assert opening.open.source.text == "b"
    many.receive(generated(generate, "B"))
    opening, generate = many.proceed(2)
    assert opening.open.source.text == "c"
    many.receive(generated(generate, "C"))
    assert [(result.source, result.error) for result in many.take()] == [
        ("a", None),
        ("large", TOO_LARGE),
        ("b", None),
        ("c", None),
    ]


@pytest.mark.parametrize(
    "error", [UnavailableError("gone"), ResourceExhaustedError("many calls", reason="TOO_MANY_CALLS")]
)
def test_a_stream_that_ends_for_another_reason_blames_no_source(error: CarouselError) -> None:
    many = protocol()
    many.add("a")
    assert not many.mark_suspects(error)
    assert sources(many.restart()) == ["a"]


def test_a_leaving_server_and_a_closed_session_are_noticed() -> None:
    many = protocol()
    _, generate = many.add("a")
    with pytest.raises(UnavailableError, match="the server is shutting down"):
        many.receive(pb.StreamResponse(go_away=pb.GoAway()))
    many.receive(
        pb.StreamResponse(session_id=generate.session_id, closed=pb.Closed(reason=pb.CLOSE_REASON_IDLE), position=1)
    )
    (result,) = many.take()
    assert isinstance(result.error, SessionClosedError)
