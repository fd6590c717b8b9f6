"""A part of a generation gathers tokens until it is taken."""

from __future__ import annotations

from carousel.v1 import inference_pb2 as pb
from service.api.part import Part
from service.engine.decoding import FinishReason
from service.engine.jobs import Generated

NAMES = ("<pad>", "<s>", "</s>", "AA", "B")


def test_a_token_has_a_log_probability_where_it_was_asked_for() -> None:
    part = Part(NAMES)
    part.add(Generated(1, 3, None, None))
    part.add(Generated(2, 4, -0.5, None))
    expected = [pb.Token(id=3, text="AA"), pb.Token(id=4, text="B", log_probability=-0.5)]
    assert part.take() == pb.Generated(tokens=expected)


def test_it_is_where_its_last_token_is_and_ends_as_its_generation_does() -> None:
    part = Part(NAMES)
    assert not part.is_taken
    for position in (5, 6, 7):
        part.add(Generated(position, 3, None, FinishReason.MAX_TOKENS if position == 7 else None))
    assert (len(part), part.position) == (3, 7)
    assert part.take().finish_reason == pb.FINISH_REASON_MAX_TOKENS
    assert part.is_taken


def test_an_end_without_a_token_adds_none() -> None:
    part = Part(NAMES)
    part.add(Generated(4, None, None, FinishReason.EOS))
    assert (len(part), part.position) == (0, 4)
    assert part.take() == pb.Generated(finish_reason=pb.FINISH_REASON_EOS)
