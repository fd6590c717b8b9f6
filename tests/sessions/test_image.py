"""A session resumes only on a model that fits it: every index and size in it is checked before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from service.engine.arena import Array
from service.engine.beam import Hypothesis
from service.engine.decoding import Beam, Decoding, FinishReason, Sampling
from service.engine.engine import Engine
from service.engine.jobs import OutputKind, OutputSpec
from service.engine.results import LaneState, Searched, StepOutput
from service.errors import SnapshotModelError
from service.sessions.generation import LastFeed
from service.sessions.image import FedBefore, GeneratedBefore, Image, check_fits, last_in
from service.sessions.served import Served
from tests import domain

SIZE = len(domain.TARGET_NAMES)
SERVED = Served(domain.bundle(), cast(Engine, None))
STATES: list[Array] = [np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)]


def lane(**changes: Any) -> LaneState:
    return LaneState(4, [SIZE - 1], None, STATES, [], 0, None)._replace(**changes)


def image(**changes: Any) -> Image:
    made = Image("s", "made", 3, "fp32", domain.DIGEST, 0.0, ["hidden", "cell"], lane())
    return replace(made, **changes)


def fed(**changes: Any) -> FedBefore:
    made = FedBefore(0, [0, SIZE - 1], OutputSpec(OutputKind.TOP_K, SIZE), [StepOutput(1, [0, SIZE - 1], [-1.0, -2.0])])
    return replace(made, **changes)


def generated(**changes: Any) -> GeneratedBefore:
    decoding = Decoding(9, Sampling(top_k=SIZE), stop_ids=frozenset({SIZE - 1}))
    return replace(GeneratedBefore(0, decoding, 0, [0, SIZE - 1], [-1.0, -1.0], None), **changes)


def searched(*, tokens: list[int], end_id: int | None) -> GeneratedBefore:
    hypothesis = Hypothesis(tokens, end_id, 0.0, -1.0, [-1.0], FinishReason.EOS)
    return GeneratedBefore(0, Decoding(9, beam=Beam(2)), 0, [], None, None, Searched(1, [hypothesis]))


@pytest.mark.parametrize(
    "fitting",
    [
        image(),
        image(lane=lane(pending=[], next_logits=np.zeros(SIZE, np.float32))),
        image(lane=lane(seen=np.array([0, SIZE - 1]), num_produced=2), last=generated()),
        image(last=fed(), marks={2: lane(position=2)}),
        image(last=searched(tokens=[0, SIZE - 1], end_id=2)),
    ],
)
def test_a_session_of_the_models_vocabulary_fits(fitting: Image) -> None:
    check_fits(fitting, SERVED)


def places(wrong: int) -> dict[str, Image]:
    """Returns images with a token outside the vocabulary, by the place of that token."""
    row = np.zeros(SIZE + 1, np.float32)
    return {
        "pending": image(lane=lane(pending=[wrong])),
        "seen": image(lane=lane(seen=np.array([0, wrong]), num_produced=2), last=generated()),
        "fed tokens": image(last=fed(tokens=[wrong])),
        "fed answer": image(last=fed(answer=[StepOutput(1, [wrong], [-1.0])])),
        "fed logits": image(last=fed(answer=[StepOutput(1, [], None, row)])),
        "fed top_k": image(last=fed(outputs=OutputSpec(OutputKind.TOP_K, SIZE + 1))),
        "generated": image(last=generated(tokens=[0, wrong])),
        "stop ids": image(last=generated(decoding=Decoding(9, stop_ids=frozenset({wrong})))),
        "sampling top_k": image(last=generated(decoding=Decoding(9, Sampling(top_k=SIZE + 1)))),
        "hypothesis": image(last=searched(tokens=[wrong], end_id=None)),
        "end of a hypothesis": image(last=searched(tokens=[0], end_id=wrong)),
        "next logits": image(lane=lane(pending=[], next_logits=row)),
        "next logits of rows": image(lane=lane(pending=[], next_logits=np.zeros((1, SIZE), np.float32))),
        "pending of a mark": image(marks={2: lane(position=2, pending=[wrong])}),
        "next logits of a mark": image(marks={2: lane(position=2, pending=[], next_logits=row)}),
        "seen of a mark": image(marks={2: lane(position=2, seen=np.array([wrong]))}),
        "fewer log-probabilities": image(last=generated(log_probabilities=[-1.0])),
        "fewer log-probabilities of an answer": image(last=fed(answer=[StepOutput(1, [0, 1], [-1.0])])),
    }


@pytest.mark.parametrize("wrong", [SIZE, 2**40, -1])
@pytest.mark.parametrize("place", places(0))
def test_a_session_of_another_vocabulary_is_refused_wherever_it_shows(place: str, wrong: int) -> None:
    with pytest.raises(SnapshotModelError, match="its token ids or arrays do not fit the vocabulary of 6 tokens"):
        check_fits(places(wrong)[place], SERVED)


@pytest.mark.parametrize("has_mark", [False, True])
def test_a_mark_at_the_end_of_the_last_feed_says_that_this_feed_was_marked(has_mark: bool) -> None:
    """No snapshot says it in another way, so those of older servers do not either."""
    feed = last_in(image(last=fed(), marks={4: lane()} if has_mark else {2: lane(position=2)}))
    assert isinstance(feed, LastFeed)
    for asked in (False, True):
        assert feed.is_repeated_by(0, fed().tokens, fed().outputs, has_mark=asked) == (asked == has_mark)


@pytest.mark.parametrize("where", ["lane", "mark"])
def test_a_state_of_another_shape_is_refused_also_in_a_mark(where: str) -> None:
    other = lane(states=[np.zeros((1, 3), np.float32), STATES[1]])
    with pytest.raises(SnapshotModelError, match=r"snapshot has hidden as float32\[1, 3\]"):
        check_fits(image(lane=other) if where == "lane" else image(marks={1: other}), SERVED)


@pytest.mark.parametrize("lengths", [(21, 21), (3, 4)])
def test_a_source_that_the_model_cannot_hold_is_refused(lengths: tuple[int, int]) -> None:
    contexts = [domain.context("memory"), domain.context("keys")]
    manifest = domain.manifest(contexts=contexts, has_encoder=True)
    served = Served(replace(domain.bundle(has_encoder=True), manifest=manifest), cast(Engine, None))
    fitting = [np.zeros((domain.MAX_SOURCE_LENGTH, 2), np.float32)] * 2
    check_fits(image(lane=lane(contexts=fitting)), served)
    with pytest.raises(SnapshotModelError, match="snapshot has a source of"):
        check_fits(image(lane=lane(contexts=[np.zeros((length, 2), np.float32) for length in lengths])), served)
