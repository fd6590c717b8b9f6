"""A part of a generation collects tokens until it is taken."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

from carousel.v1 import inference_pb2 as pb
from service.api.part import Part
from service.engine.decoding import FinishReason
from service.engine.results import Generated
from service.repository.vocabulary import Vocabulary
from tests import domain

ROOM = 1024 * 1024
NAMES = ("<pad>", "<s>", "</s>", "AA", "B")
BUNDLE = replace(
    domain.bundle(),
    target_vocabulary=Vocabulary(NAMES, owner="the target vocabulary", tokenizer="whitespace", lowercase=False),
)


def test_a_token_has_a_log_probability_where_it_was_asked_for() -> None:
    part = Part(BUNDLE, ROOM)
    part.add(Generated(2, [3, 4], [-1.5, -0.25], None))
    part.add(Generated(3, [4], [-0.5], None))
    expected = [(3, "AA", -1.5), (4, "B", -0.25), (4, "B", -0.5)]
    tokens = [pb.Token(id=token, text=text, log_probability=p) for token, text, p in expected]
    assert part.take() == pb.Generated(tokens=tokens)


def test_tokens_without_log_probabilities_are_those_of_messages_made_one_by_one() -> None:
    part = Part(BUNDLE, ROOM)
    part.add(Generated(2, [0, 4], None, None))
    part.add(Generated(4, [3, 3], None, None))
    expected = [pb.Token(id=token, text=NAMES[token]) for token in (0, 4, 3, 3)]
    assert part.take() == pb.Generated(tokens=expected)


def test_a_part_has_the_position_of_its_last_token_and_the_finish_reason() -> None:
    part = Part(BUNDLE, ROOM)
    assert not part.is_taken
    for position in (5, 6, 7):
        part.add(Generated(position, [3], None, FinishReason.MAX_TOKENS if position == 7 else None))
    assert (len(part), part.position) == (3, 7)
    assert part.take().finish_reason == pb.FINISH_REASON_MAX_TOKENS
    assert part.is_taken


def test_an_end_without_a_token_adds_none() -> None:
    part = Part(BUNDLE, ROOM)
    part.add(Generated(4, [], None, FinishReason.EOS))
    assert (len(part), part.position) == (0, 4)
    assert part.take() == pb.Generated(finish_reason=pb.FINISH_REASON_EOS)


def test_a_part_is_bounded_by_the_message_size() -> None:
    part = Part(BUNDLE, max_bytes=10 * BUNDLE.max_token_bytes)
    assert part.room == 10
    part.add(Generated(8, [3] * 10, [-1.5] * 10, None))
    assert part.room == 0
    assert part.take().ByteSize() <= 10 * BUNDLE.max_token_bytes
    assert Part(BUNDLE, max_bytes=1).room == 1, "or nothing would ever be sent"
    assert Part(BUNDLE, max_bytes=2**31).room == Part(BUNDLE, ROOM).room, "a part is no longer than a writer takes well"


def test_a_vocabularys_parts_are_freed_with_it() -> None:
    vocabulary = Vocabulary(NAMES, owner="v", tokenizer="whitespace", lowercase=False)
    part = Part(replace(BUNDLE, target_vocabulary=vocabulary), ROOM)
    part.add(Generated(2, [3], None, None))
    part.take()
    seen = weakref.ref(vocabulary)
    del vocabulary, part
    gc.collect()
    assert seen() is None
